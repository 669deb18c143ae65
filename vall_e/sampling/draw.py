"""From logits to a token, with noise that belongs to the row. Dimensions: R rows, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 17.5  # a float32 uniform can be 0, else it is at least 2^-24: -log of that is 16.6


def draw(logits: Tensor, noise: Tensor | None, temperature: float = 1.0) -> Tensor:
    """A token int64 [R] for each row of logits [R, V].

    Args:
        noise: Gumbel noise [R, V]: ``argmax(logits + noise)`` is a sample (the Gumbel-max trick). Coming from outside,
            it makes a row's draws its own, whatever batch it is in. None is greedy.
        temperature: of the distribution, above 0. The noise is scaled by it, not the logits: one operation less.
    """
    if noise is None:
        return logits.argmax(-1)
    return torch.add(logits, noise, alpha=temperature).argmax(-1)


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gumbel(0, 1) noise -log(-log u) of uniforms u, float32 on the CPU; made so, and not by torch's exponential noise,
    as that takes 17 times as long."""
    uniform = torch.empty(shape).uniform_(generator=generator)
    return uniform.log_().neg_().clamp_(max=MOST).log_().neg_()
