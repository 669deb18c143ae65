"""Who may look at whom. Dimensions: B rows, T positions of this forward, S positions of past and present."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vall_e.nn.cache import Cache


@dataclass(frozen=True)
class Mask:
    """What is not plainly causal about a batch of rows that are padded on the right.

    Attributes:
        lengths: int64 [B], positions in use.
        parallel: bool [B], rows whose positions see the whole of their own row; the others are causal.
        segment: int64 [B, T]; a position sees its own segment only. None: one segment a row.
        start: int64 [B]; in a parallel row, positions before it do not see what is behind it. None: all see all.
    """

    lengths: Tensor
    parallel: Tensor
    segment: Tensor | None = None
    start: Tensor | None = None

    def dense(self, length: int, window: int | None = None) -> Tensor:
        """Bool [B, 1, T, T], True where a position may look. Padding of a parallel row sees what the row sees;
        where there are segments, a position always sees itself."""
        index = torch.arange(length, device=self.lengths.device)
        inside = index[None, None, :] < self.lengths[:, None, None]
        if self.start is not None:
            start = self.start[:, None]
            inside = inside & ((index >= start)[:, :, None] | (index < start)[:, None, :])
        out = torch.where(self.parallel[:, None, None], inside, causal(length, length, window, index.device)[None])
        if self.segment is not None:
            own = torch.eye(length, dtype=torch.bool, device=index.device)
            out = out & (self.segment[:, :, None] == self.segment[:, None, :]) | own
        return out.unsqueeze(1)


def causal(length: int, total: int, window: int | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Bool [T, S]: the last ``length`` of ``total`` positions see themselves and what is before, ``window`` in all."""
    keys = torch.arange(total, device=device)
    behind = keys[total - length :, None] - keys[None, :]
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)


def visible(
    mask: Mask | None, length: int, cache: Cache | None, window: int | None, device: torch.device
) -> Tensor | None:
    """What an attention layer needs to know: bool [B or 1, 1, T, S], or None for plain causal attention.

    Args:
        mask: of a batch without a past; None is causal.
        length: T.
        cache: rows that have a past are causal over it and over what is new.
        window: how far back a causal position sees, itself included; None is all the way.
    """
    if cache is not None and not cache.empty:
        if mask is not None:
            raise ValueError("rows with a past are causal: a mask belongs to a forward without one")
        return cache.mask(length, window)
    if mask is not None:
        return mask.dense(length, window)
    return None if window is None or window >= length else causal(length, length, window, device)[None, None]
