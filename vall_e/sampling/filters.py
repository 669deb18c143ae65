"""Temperature, and which tokens may be drawn at all. Pure; neutral values are the identity, no row is emptied.

Dimensions: R rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vall_e.sampling.penalties import centred

COLDEST = 1e-30  # temperature at which logits of 10^8 are finite, and those that differ at all are worlds apart


def scale(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Logits [R, V] divided by a temperature above 0, without becoming infinite: below ``COLDEST`` no draw differs."""
    cold = temperature.clamp(min=COLDEST) if isinstance(temperature, Tensor) else max(temperature, COLDEST)
    return logits / cold


def dynamic_temperature(logits: Tensor, low: float, high: float) -> Tensor:
    """A temperature float [R, 1] for each row of logits [R, V]: near ``low`` where one token is certain, else ``high``.

    ``high - (high - low) / (1 + e^(-10 (p - 0.5)))`` for the probability p of the likeliest token (koboldcpp, pull
    request 464): half way at p = 0.5.
    """
    certain = logits.softmax(-1).amax(-1, keepdim=True)
    return high - (high - low) * torch.sigmoid(10.0 * (certain - 0.5))


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest of each row [R, V], -inf elsewhere; 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    bound = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < bound, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set whose probability reaches p (nucleus sampling, 1904.09751); 1 keeps all."""
    return logits if p >= 1.0 else likeliest(logits, p=p)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens with at least the share p of the likeliest one's probability (2407.01082); 0 keeps all."""
    if p <= 0.0:
        return logits
    bound = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < bound, -torch.inf)


def top_n_sigma(logits: Tensor, n: float) -> Tensor:
    """Keep logits within n standard deviations of the greatest (2411.07641, section 3); 0 keeps all.

    Tokens that cannot be drawn (-inf) do not count in the deviation. What is kept does not depend on temperature.
    """
    if n <= 0.0:
        return logits
    there = torch.isfinite(logits)
    count = there.sum(-1, keepdim=True)
    deviation = (centred(logits).masked_fill(~there, 0.0).square().sum(-1, keepdim=True) / count).sqrt()
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) - n * deviation, -torch.inf)


def likeliest(logits: Tensor, k: Tensor | None = None, p: Tensor | float | None = None) -> Tensor:
    """Keep the k likeliest of each row, and of them those before which the others have less than the probability p.

    Args:
        logits: float [R, V].
        k: int64 [R, 1], at least 1.
        p: above 0; a number, or float [R, 1].
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    drop = torch.zeros_like(ordered, dtype=torch.bool)
    if k is not None:
        drop |= torch.arange(logits.shape[-1], device=logits.device) >= k
    if p is not None:
        probability = ordered.softmax(-1)
        drop |= probability.cumsum(-1) - probability >= p
    return torch.full_like(logits, -torch.inf).scatter(-1, order, ordered.masked_fill(drop, -torch.inf))
