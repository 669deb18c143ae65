"""Finite scalars in groups (2309.15505): each group's scalars are rounded to a few values, and their number is a code.

Dimensions: B batch, T frames, L groups (levels of the codec), d scalars of a group, D = L * d, n = product of values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SHRINK = 1e-3  # keeps the outermost values off the border where rounding would leave the range


class GroupedScalars(nn.Module):
    """Rounds and numbers the scalars of ``groups`` groups; has no weights.

    Args:
        groups: L.
        values: how many values each scalar of a group can take; 8 x 5 x 5 x 5 are 1,000 codes.

    Raises:
        ValueError: no group, or a scalar with fewer than two values.
    """

    def __init__(self, groups: int, values: Sequence[int]) -> None:
        super().__init__()
        if groups < 1 or not values or min(values) < 2:
            raise ValueError(f"{groups} groups of scalars with {list(values)} values: each needs at least two values")
        self.groups, self.codes = groups, math.prod(values)
        count = torch.tensor(values)
        base = torch.tensor([math.prod(values[:i]) for i in range(len(values))])
        self.register_buffer("count", count[:, None], persistent=False)
        self.register_buffer("base", base[:, None], persistent=False)

    def encode(self, z: Tensor) -> Tensor:
        """``z`` float [B, D, T], unbounded → codes int64 [B, L, T]; the first scalar counts fastest."""
        z = z.unflatten(1, (self.groups, -1))
        scale = (self.count - 1) / 2 * (1 - SHRINK)
        offset = torch.where(self.count % 2 == 0, 0.5, 0.0)
        bounded = scale * (z + (offset / scale).tan()).tanh() - offset
        return ((bounded.round().long() + self.count // 2) * self.base).sum(2)

    def decode(self, codes: Tensor) -> Tensor:
        """``codes`` int64 [B, l, T], the first l <= L groups → float [B, D, T] in -1..1, 0 in groups left out."""
        half = self.count // 2
        scalars = ((codes[:, :, None] // self.base) % self.count - half) / half
        missing = scalars.new_zeros(len(codes), self.groups - codes.shape[1], *scalars.shape[2:])
        return torch.cat((scalars, missing), 1).flatten(1, 2)

    def tables(self) -> list[Tensor]:
        """What each code stands for, float [n, D]: a group has its own columns and zeros in the others'."""
        every = torch.arange(self.codes, device=self.count.device)
        own = self.decode(every[None, None].expand(1, self.groups, -1))[0].unflatten(0, (self.groups, -1))
        out = own.new_zeros(self.groups, self.codes, self.groups, own.shape[1])
        for group in range(self.groups):
            out[group, :, group] = own[group].T
        return list(out.flatten(2))
