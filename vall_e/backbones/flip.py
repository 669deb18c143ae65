"""Both directions from a backbone that sees the past only: a second run over the reversed row, with the same weights.

Dimensions: B rows, T positions, D width, P parallel rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vall_e.backbones.base import Backbone
from vall_e.nn.cache import Cache
from vall_e.nn.masks import Mask


class Flip(Backbone):
    """``f(x)`` for causal rows, ``f(x) + unflip(f(flip(x)))`` for parallel ones, after every layer of ``inner``.

    A row is reversed within its own length, and each of its inputs keeps its rotary position: a pair of positions is
    compared alike in both directions.
    """

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner.config)
        self.inner = inner

    @property
    def norm(self) -> nn.Module:
        return self.inner.norm

    @property
    def blocks(self) -> nn.ModuleList:
        return self.inner.blocks

    def states(
        self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: Cache | None = None
    ) -> Iterator[Tensor]:
        if mask is None or not bool(mask.parallel.any()):
            yield from self.inner.states(x, positions, mask, cache)
            return
        if mask.segment is not None or cache is not None:
            raise ValueError("a reversed run knows neither segments nor a past: parallel rows go without both")
        rows = mask.parallel.nonzero()[:, 0]
        order = flip(mask.lengths[rows], x.shape[1])
        backward = self.inner.states(_take(x[rows], order), positions[rows].gather(1, order))
        for there, back in zip(self.inner.states(x, positions), backward, strict=True):
            yield there.index_add(0, rows, _take(back, order).to(there.dtype))

    def prefill(self, x: Tensor, positions: Tensor, mask: Mask | None, cache: Cache, last: int = 1) -> Tensor:
        if mask is not None:
            raise ValueError("a reversed run leaves no past to go on from: only causal rows can be prefilled")
        return self.inner.prefill(x, positions, None, cache, last)

    def fuse(self) -> None:
        self.inner.fuse()

    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> Cache:
        return self.inner.new_cache(rows, size, dtype, device)


def flip(lengths: Tensor, total: int) -> Tensor:
    """Slots int64 [P, total] of rows with ``lengths`` int64 [P] read backwards, padding where it was: an involution."""
    slot = torch.arange(total, device=lengths.device)
    return torch.where(slot < lengths[:, None], lengths[:, None] - 1 - slot, slot)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """``x`` [P, T, D] in the order of ``order`` int64 [P, T]."""
    return x.gather(1, order[..., None].expand_as(x))
