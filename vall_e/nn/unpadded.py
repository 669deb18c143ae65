"""Rows of several lengths one after the other, without their padding: what works position by position then computes
nothing in vain. Dimensions: B rows of at most T positions, N of which are no padding, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Unpadded:
    """Where the positions of rows that are padded on the right lie.

    Attributes:
        rows, length: B, T.
        places: int64 [N], of those that are no padding, among B * T.
        first: int64 [B], where each row begins among N.
    """

    rows: int
    length: int
    places: Tensor
    first: Tensor

    @classmethod
    def of(cls, real: Tensor) -> Unpadded:
        """Of rows by ``real`` bool [B, T], which positions are no padding (``Cache.real``)."""
        counts = real.sum(1)
        return cls(*real.shape, real.flatten().nonzero()[:, 0], counts.cumsum(0) - counts)

    def collect(self, padded: Tensor) -> Tensor:
        """[B, T, W] → [N, W]."""
        return padded.reshape(self.rows * self.length, -1)[self.places]

    def spread(self, joined: Tensor) -> Tensor:
        """[N, W] → [B, T, W], zero in the padding."""
        out = joined.new_zeros(self.rows * self.length, joined.shape[1])
        return out.index_copy_(0, self.places, joined).view(self.rows, self.length, -1)
