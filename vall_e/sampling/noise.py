"""Random numbers of which every row has its own stream. Dimensions: R rows, W steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vall_e.sampling.draw import gumbel


class RowNoise:
    """Gumbel(0, 1) noise with a generator per row: what a row draws does not depend on its batch.

    Args:
        seeds: one per row.
        shape: of one step's noise for one row.
        chunk: steps that a stream draws at once: always as many, as some generators do not draw 16 + 16 as 32.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device, chunk: int = 32) -> None:
        self.shape, self.device, self.chunk = shape, device, chunk
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._drawn = torch.empty(len(seeds), 2 * chunk, *shape, device=device)
        self._at, self._have = [0] * len(seeds), [0] * len(seeds)

    def ahead(self, count: int) -> Tensor:
        """Noise of the next ``count`` steps of each row, at most ``chunk``, float [R, count, *shape]; see ``skip``."""
        if count > self.chunk:
            raise ValueError(f"noise is drawn {self.chunk} steps ahead, not {count}")
        for row, (at, have) in enumerate(zip(self._at, self._have, strict=True)):
            if have - at < count:
                rest = have - at
                fresh = gumbel((self.chunk, *self.shape), self.generators[row])
                self._drawn[row, :rest] = self._drawn[row, at:have].clone()
                self._drawn[row, rest : rest + self.chunk] = fresh.to(self.device)
                self._at[row], self._have[row] = 0, rest + self.chunk
        if len(set(self._at)) == 1:
            return self._drawn[:, self._at[0] : self._at[0] + count]
        steps = torch.tensor(self._at)[:, None] + torch.arange(count)
        return self._drawn[torch.arange(len(self._at), device=self.device)[:, None], steps.to(self.device)]

    def skip(self, counts: int | Sequence[int]) -> None:
        """So many steps of each row are used up."""
        counts = [counts] * len(self._at) if isinstance(counts, int) else counts
        self._at = [at + count for at, count in zip(self._at, counts, strict=True)]

    def next(self) -> Tensor:
        """Noise of the next step, float [R, *shape], which is then used up."""
        noise = self.ahead(1)[:, 0]
        self.skip(1)
        return noise

    def select(self, rows: Sequence[int]) -> None:
        """Go on with the rows ``rows`` only, in that order."""
        for name in ("generators", "_at", "_have"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])
        self._drawn = self._drawn[torch.tensor(rows, dtype=torch.int64, device=self.device)]

    def extend(self, other: RowNoise) -> None:
        """Take the rows of another one in, behind those that are there."""
        for name in ("generators", "_at", "_have"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._drawn = torch.cat((self._drawn, other._drawn))
