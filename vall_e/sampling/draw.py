"""From logits to a token, with noise that belongs to the row. Dimensions: R rows, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(logits: Tensor, noise: Tensor | None, temperature: float = 1.0) -> Tensor:
    """A token int64 [R] for each row of logits [R, V].

    Args:
        noise: exponential(1) noise [R, V]: ``argmax(p / noise)`` is a sample of p (the Gumbel trick). Coming from
            outside, it makes a row's draws its own, whatever batch it is in. None is greedy.
        temperature: of the distribution, above 0. The noise is scaled by it, not the logits: one operation less.
    """
    if noise is None:
        return logits.argmax(-1)
    return torch.sub(logits, noise.log(), alpha=temperature).argmax(-1)
