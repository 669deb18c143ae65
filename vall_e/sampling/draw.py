"""From logits to a token, with noise that belongs to the row. Dimensions: R rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 17.5  # a float32 uniform can be 0, else it is at least 2^-24: -log of that is 16.6


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


def exponential(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Exponential(1) noise float32 on the CPU, by the logarithm of a uniform: 17 times as fast as ``exponential_``."""
    return torch.empty(shape).uniform_(generator=generator).log_().neg_().clamp_(max=MOST)


class RowNoise:
    """Exponential noise with a generator per row, drawn in chunks of steps.

    A row's noise is the same in whatever batch it is, and whenever it joined.

    Args:
        seeds: one per row.
        shape: of one step's noise for one row.
        chunk: steps that a generator draws at once; what it draws depends on it.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device, chunk: int = 32) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device, self.chunk = shape, device, chunk
        self._ahead = [torch.empty(0, *shape) for _ in seeds]  # on the CPU: drawn, and beyond the block
        self._block, self._at = torch.empty(len(seeds), 0, *shape, device=device), 0

    def next(self) -> Tensor:
        """Noise of the next step, float [R, *shape]."""
        if self._at == self._block.shape[1]:
            self._fill()
        self._at += 1
        return self._block[:, self._at - 1]

    def select(self, rows: Tensor) -> None:
        """Go on with the rows ``rows`` int64 only, each at most once."""
        index = rows.tolist()
        self.generators = [self.generators[i] for i in index]
        self._ahead = [self._ahead[i] for i in index]
        self._block = self._block[rows.to(self._block.device)]

    def extend(self, other: RowNoise) -> None:
        """Take the rows of ``other`` in behind the own ones; ``other`` must not be used any more."""
        self._ahead = self._left() + other._left()
        self.generators = self.generators + other.generators
        self._block, self._at = self._block[:0, :0], 0

    def _left(self) -> list[Tensor]:
        """Per row, the noise that was drawn and not used."""
        rest = self._block[:, self._at :].cpu()
        return [torch.cat(pair) for pair in zip(rest, self._ahead, strict=True)]

    def _fill(self) -> None:
        """At least ``chunk`` steps for every row: rows that joined at different times are at different places."""
        for i, generator in enumerate(self.generators):
            while len(self._ahead[i]) < self.chunk:
                fresh = exponential((self.chunk, *self.shape), generator)
                self._ahead[i] = torch.cat((self._ahead[i], fresh)) if len(self._ahead[i]) else fresh
        steps = min(map(len, self._ahead), default=self.chunk)
        rows = [row[:steps] for row in self._ahead]
        self._ahead = [row[steps:] for row in self._ahead]
        self._block = torch.stack(rows).to(self.device) if rows else torch.empty(0, steps, *self.shape)
        self._at = 0
