"""Residual vector quantisation with codebooks that follow the data.

SoundStream (2107.03312, section III-C): each level quantises what the levels before it left over; codebooks are
moving averages of the vectors assigned to them; codes that nothing chooses are moved onto live vectors.

Dimensions: B batch, d code width, T frames, L levels, n codes per level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualVQ(nn.Module):
    """L codebooks of n vectors, learned by exponential moving averages.

    Args:
        levels: L.
        codes: n.
        dim: d.
        decay: of the moving averages.
        dead_below: a code whose average use falls below this many vectors a batch is replaced.
    """

    def __init__(self, levels: int, codes: int, dim: int, decay: float = 0.98, dead_below: float = 0.3) -> None:
        super().__init__()
        self.decay, self.dead_below = decay, dead_below
        self.register_buffer("tables", torch.zeros(levels, codes, dim))
        self.register_buffer("usage", torch.zeros(levels, codes))
        self.register_buffer("sums", torch.zeros(levels, codes, dim))
        self.register_buffer("ready", torch.zeros(levels, dtype=torch.bool))

    @property
    def levels(self) -> int:
        return self.tables.shape[0]

    @staticmethod
    def nearest(x: Tensor, table: Tensor) -> Tensor:
        """Index int64 [M] of the row of ``table`` [n, d] nearest to each row of ``x`` [M, d]."""
        return (table.square().sum(-1) - 2 * x @ table.T).argmin(-1)

    def encode(self, z: Tensor) -> Tensor:
        """``z`` float [B, d, T] → codes int64 [B, L, T]."""
        batch, dim, frames = z.shape
        rest = z.transpose(1, 2).reshape(-1, dim)
        codes = []
        for table in self.tables:
            index = self.nearest(rest, table)
            codes.append(index)
            rest = rest - table[index]
        return torch.stack(codes).view(self.levels, batch, frames).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """``codes`` int64 [B, l, T], the first l <= L levels → float [B, d, T]."""
        total = sum(self.tables[level][codes[:, level]] for level in range(codes.shape[1]))
        return total.transpose(1, 2)

    def forward(self, z: Tensor, keep: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Quantise for training and move the codebooks.

        Args:
            z: float [B, d, T].
            keep: int64 [B], how many levels each row uses (level dropout).
            generator: draws the vectors that replace dead codes.

        Returns:
            quantised float [B, d, T] with a straight-through gradient, and the commitment loss (scalar).
        """
        batch, dim, frames = z.shape
        flat = z.transpose(1, 2).reshape(-1, dim)
        rest, total = flat.detach(), torch.zeros_like(flat)
        commitment = flat.new_zeros(())
        for level in range(self.levels):
            live = (keep > level).repeat_interleave(frames)
            if not live.any():
                break
            vectors = rest[live]
            if not self.ready[level]:
                self._initialise(level, vectors, generator)
            index = self.nearest(vectors, self.tables[level])
            chosen = self.tables[level][index]
            commitment = commitment + F.mse_loss(flat[live] - total[live], chosen)
            step = torch.zeros_like(flat)
            step[live] = chosen
            self._follow(level, vectors, index, generator)
            total, rest = total + step, rest - step
        quantised = flat + (total - flat).detach()
        return quantised.view(batch, frames, dim).transpose(1, 2), commitment

    @torch.no_grad()
    def _initialise(self, level: int, vectors: Tensor, generator: torch.Generator) -> None:
        n = self.tables.shape[1]
        pick = torch.randint(len(vectors), (n,), generator=generator)
        noise = torch.randn(n, vectors.shape[1], generator=generator) * vectors.std() * 0.01
        self.tables[level] = vectors[pick] + noise
        for _ in range(5):  # a few rounds of k-means
            index = self.nearest(vectors, self.tables[level])
            count = torch.bincount(index, minlength=n).to(vectors)
            mean = torch.zeros_like(self.tables[level]).index_add_(0, index, vectors) / count.clamp(min=1)[:, None]
            self.tables[level] = torch.where(count[:, None] > 0, mean, self.tables[level])
        self.usage[level] = 1.0
        self.sums[level] = self.tables[level]
        self.ready[level] = True

    @torch.no_grad()
    def _follow(self, level: int, vectors: Tensor, index: Tensor, generator: torch.Generator) -> None:
        n = self.tables.shape[1]
        count = torch.bincount(index, minlength=n).to(vectors)
        total = torch.zeros_like(self.tables[level]).index_add_(0, index, vectors)
        self.usage[level].lerp_(count, 1 - self.decay)
        self.sums[level].lerp_(total, 1 - self.decay)
        self.tables[level] = self.sums[level] / self.usage[level].clamp(min=1e-5)[:, None]
        dead = (self.usage[level] < self.dead_below).nonzero().flatten()
        if len(dead):
            pick = torch.randint(len(vectors), (len(dead),), generator=generator)
            self.tables[level, dead] = vectors[pick]
            self.sums[level, dead] = vectors[pick]
            self.usage[level, dead] = 1.0
