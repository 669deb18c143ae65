"""Entropix: temperature and filters from how sure the model is (github.com/xjdr-alt/entropix).

The entropy of the distribution and the variance of its surprise (varentropy) make four states, and how the heads of
the last layer attend says how far to go in each. Dimensions: R rows, V vocabulary, H heads, S positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vall_e.sampling.filters import likeliest, scale

RIVALS = 5  # tokens that are drawn from where few compete, if all heads attend alike


def surprise(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy (nats) and varentropy (nats²), each float [R, 1], of logits [R, V]."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    finite = log_p.masked_fill(p == 0, 0.0)
    entropy = -(p * finite).sum(-1, keepdim=True)
    return entropy, (p * (finite + entropy).square()).sum(-1, keepdim=True)


def attention_spread(attention: Tensor) -> tuple[Tensor, Tensor]:
    """How widely the heads attend, and how much they differ, each float [R, 1] in 0..1.

    Args:
        attention: float [R, H, S], probabilities; 0 where a row has no position.

    Returns:
        the heads' mean entropy as a share of the greatest possible, and the mean total variation from their mean.
    """
    positions = (attention > 0).any(1).sum(-1, keepdim=True)
    entropy = torch.special.entr(attention).sum(-1).mean(1, keepdim=True) / positions.clamp(min=2).log()
    apart = (attention - attention.mean(1, keepdim=True)).abs().sum(-1).mean(1, keepdim=True) / 2
    return entropy.clamp(max=1.0), apart


def entropix(
    logits: Tensor,
    temperature: float,
    entropy_bound: float,
    varentropy_bound: float,
    attention: Tensor | None = None,
) -> Tensor:
    """Logits float [R, V] of what is drawn from, -inf where nothing is.

    - Entropy and varentropy low, the model is sure: the likeliest token.
    - Entropy high, varentropy low, many tokens are as good: text models insert a token there that asks for thought.
      Codes have none; what follows such a token is done at once: all tokens, at a temperature that is higher the wider
      the heads attend.
    - Entropy low, varentropy high, a few rivals: one of the likeliest, of more of them and at a higher temperature
      the more the heads differ.
    - Both high, the model is lost: a high temperature among fewer of the likely tokens, the wider the heads attend.

    Args:
        logits: float [R, V], before temperature.
        temperature: that the states' temperatures are multiples of, above 0.
        entropy_bound, varentropy_bound: nats and nats² above which they are high.
        attention: float [R, H, S], probabilities of the last layer; None counts as heads that all see one position.
    """
    entropy, varentropy = surprise(logits)
    wide, apart = (torch.zeros_like(entropy),) * 2 if attention is None else attention_spread(attention)
    unsure, uneven = entropy > entropy_bound, varentropy > varentropy_bound
    even, rivals, lost = unsure & ~uneven, ~unsure & uneven, unsure & uneven
    factor = 1.0 + even * (0.3 + 0.2 * wide) + rivals * (0.2 + 0.3 * apart) + lost * (1.0 + 0.5 * wide)
    most = logits.shape[-1]
    k = torch.where(unsure, most, torch.where(rivals, (RIVALS * (1.0 + apart)).round().long(), 1))
    p = torch.where(lost, 0.9 - 0.4 * wide, 2.0)
    return likeliest(scale(logits, temperature * factor), k, p)
