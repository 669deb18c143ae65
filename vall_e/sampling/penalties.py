"""What was drawn before, taken off the logits of what comes next. Pure; neutral values are the identity.

Dimensions: R rows, V vocabulary, W tokens that are looked back, the newest last; negative ones are empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 1e30  # no penalty makes a logit infinite: something must be left to draw


def centred(logits: Tensor) -> Tensor:
    """Logits [R, V] less the mean of their finite ones, wherever their zero was."""
    there = torch.isfinite(logits)
    mean = logits.masked_fill(~there, 0.0).sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp(min=1)
    return logits - mean


def repetition_penalty(
    logits: Tensor, history: Tensor, penalty: float, decay: float = 0.0, each: bool = False
) -> Tensor:
    """Make tokens of the past less likely (CTRL, 1909.05858, section 4.1).

    Args:
        logits: float [R, V].
        history: int64 [R, W].
        penalty: 1 is the identity; above 1 positive logits are divided and negative ones multiplied by it. What is
            positive should not be chance: see ``centred``.
        decay: share of its exponent that is gone with each step back: 0 is CTRL's, 1 sees the newest token only.
        each: a token is punished for each of its occurrences, not for the newest.
    """
    if penalty == 1.0 or history.shape[1] == 0:
        return logits
    back = torch.arange(history.shape[1] - 1, -1, -1, device=logits.device)
    weight = torch.full(back.shape, 1.0 - decay, device=logits.device).pow(back).expand(history.shape)
    exponent = torch.zeros(logits.shape[0], logits.shape[1] + 1, device=logits.device)
    tokens = torch.where(history < 0, logits.shape[1], history)
    exponent.scatter_reduce_(1, tokens, weight, "sum" if each else "amax")
    factor = torch.pow(penalty, exponent[:, :-1]).clamp(1 / MOST, MOST)
    return torch.where(logits > 0, logits / factor, logits * factor)


def length_penalty(logits: Tensor, lengths: Tensor, stop: int, penalty: float) -> Tensor:
    """Take ``penalty`` nats for each token so far from the logit of ``stop``.

    Args:
        logits: float [R, V].
        lengths: int64 [R], tokens that each row has drawn.
        penalty: above 0 restrains the end, below 0 encourages it; 0 is the identity.
    """
    if penalty == 0.0:
        return logits
    out = logits.clone()
    out[:, stop] -= penalty * lengths
    return out


def dry(logits: Tensor, history: Tensor, multiplier: float, base: float = 1.75, allowed: int = 2) -> Tensor:
    """Do not repeat yourself: punish tokens that would go on with a sequence that stood before.

    A token that once came after the same m tokens as the newest ones loses ``multiplier * base^(m - allowed)``, for the
    greatest such m, where that is at least ``allowed`` (text-generation-webui, pull request 5677).

    Args:
        logits: float [R, V].
        history: int64 [R, W].
        multiplier: 0 is the identity.
    """
    window = history.shape[1]
    if multiplier == 0.0 or window < 2:
        return logits
    match = torch.zeros_like(history[:, 1:])  # [R, W - 1]: equal tokens before each later one, from the newest back
    same = torch.ones_like(match, dtype=torch.bool)
    for back in range(window - 1):  # step by step: all pairs at once would take W times the memory
        newest = history[:, window - 1 - back, None]
        earlier = torch.nn.functional.pad(history[:, : window - 1 - back], (back, 0), value=-1)
        same = same & (earlier == newest) & (newest >= 0)
        if not same.any():
            break
        match = match + same
    tokens = torch.where(history[:, 1:] < 0, logits.shape[1], history[:, 1:])
    longest = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.int64, device=logits.device)
    longest = longest.scatter_reduce(1, tokens, match, "amax")[:, :-1]
    penalty = multiplier * torch.pow(base, (longest - allowed).to(logits.dtype)).clamp(max=MOST)
    return logits - penalty.masked_fill(longest < allowed, 0.0)


def ban(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """-inf for these tokens; those that the vocabulary does not have need no ban.

    Raises:
        ValueError: nothing would be left.
    """
    there = sorted({token for token in tokens if 0 <= token < logits.shape[-1]})
    if not there:
        return logits
    if len(there) == logits.shape[-1]:
        raise ValueError(f"banned: all {len(there)} codes of the vocabulary are banned, leave some to draw from")
    return logits.index_fill(-1, torch.tensor(there, device=logits.device), -torch.inf)
