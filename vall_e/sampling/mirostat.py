"""Mirostat (2007.14966): the distribution is cut so that the mean surprise of what is drawn stays at a target.

Each row keeps a bound on the surprise, in bits, which learns from what was drawn. Dimensions: R rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vall_e.sampling.filters import likeliest

HEAD = 100  # tokens from which version 1 estimates the exponent of Zipf's law, the paper's m


def begin(rows: int, tau: float, device: torch.device) -> Tensor:
    """The bounds float [R] before anything was drawn: twice the target surprise ``tau``."""
    return torch.full((rows,), 2.0 * tau, device=device)


def cut(logits: Tensor, bound: Tensor, version: int) -> Tensor:
    """Logits float [R, V] of what may be drawn, -inf elsewhere; the likeliest token always stays.

    Args:
        bound: float [R], bits.
        version: 1 estimates the exponent of Zipf's law and keeps as many tokens as it has below the bound
            (algorithm 1); 2, the authors' later form, drops the tokens of more surprise than the bound.
    """
    if version == 1:
        return likeliest(logits, _zipf_k(logits, bound[:, None]))
    log_p = logits.log_softmax(-1)
    floor = (-math.log(2) * bound[:, None]).minimum(log_p.amax(-1, keepdim=True))
    return logits.masked_fill(log_p < floor, -torch.inf)


def learn(logits: Tensor, tokens: Tensor, bound: Tensor, tau: float, eta: float) -> Tensor:
    """The next bounds float [R] after ``tokens`` int64 [R] were drawn from the cut of ``logits`` [R, V]."""
    surprise = -logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0] / math.log(2)
    return bound - eta * (surprise - tau)


def _zipf_k(logits: Tensor, bound: Tensor) -> Tensor:
    """int64 [R, 1]: how many tokens the bound leaves under Zipf's law, fitted to the likeliest ones."""
    size = logits.shape[-1]
    head = logits.log_softmax(-1).topk(min(HEAD, size), dim=-1).values
    there = torch.isfinite(head[:, 1:])
    fall = torch.where(there, head[:, :-1] - head[:, 1:], 0.0)
    rank = torch.arange(1, head.shape[1], device=logits.device)
    step = ((rank + 1) / rank).log() * there
    squares = step.square().sum(-1, keepdim=True).clamp(min=1e-9)
    exponent = ((step * fall).sum(-1, keepdim=True) / squares).clamp(min=1e-2)
    excess = exponent - 1.0
    excess = torch.where(excess.abs() < 1e-4, 1e-4, excess)
    k = (excess * torch.exp2(bound) / (1.0 - float(size) ** -excess)).pow(1.0 / exponent)
    return k.nan_to_num(1.0, posinf=size).round().clamp(1, size).long()
