"""Keys and values of past positions, with a length per row so that ragged batches cost no padding.

Dimensions: B rows, G key/value heads, S capacity, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Static buffers [layers, B, G, S, d]; each row writes at its own length.

    Args:
        layers, rows, heads, size, dim: layers, B, G, S, d.
        dtype, device: of the buffers.
    """

    def __init__(
        self, layers: int, rows: int, heads: int, size: int, dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keys = torch.zeros(layers, rows, heads, size, dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.origin = torch.zeros_like(self.lengths)  # slot whose rotary position is 0
        self.used = 0
        self._ragged: Tensor | None = None

    @property
    def size(self) -> int:
        return self.keys.shape[3]

    def slots(self, count: int) -> Tensor:
        """Slots int64 [B, count] that the next ``count`` inputs of each row take."""
        return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)

    def positions(self, count: int) -> Tensor:
        """Rotary positions int64 [B, count] of the next ``count`` inputs of each row."""
        return self.slots(count) - self.origin[:, None]

    def begin(self, count: int) -> None:
        """Make room for ``count`` new positions of every row; called once a forward, before the layers write."""
        start = int(self.lengths.max())
        self.used = start + count
        if self.used > self.size:
            raise ValueError(f"the cache holds {self.size} positions and {self.used} were asked for")
        even = bool((self.lengths == start).all())
        self._ragged = None if even else self.slots(count)[:, None, :, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put ``keys`` and ``values`` [B, G, T, d] behind each row's past.

        Returns:
            all keys and values so far, [B, G, U, d] where U is the longest row with its new positions;
            what lies behind a row's own end is for the caller's mask to hide (see ``mask``).
        """
        if self._ragged is None:
            self.keys[layer, :, :, self.used - keys.shape[2] : self.used] = keys
            self.values[layer, :, :, self.used - keys.shape[2] : self.used] = values
        else:
            index = self._ragged.expand_as(keys)
            self.keys[layer].scatter_(2, index, keys.to(self.keys.dtype))
            self.values[layer].scatter_(2, index, values.to(self.values.dtype))
        return self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]

    def mask(self, count: int) -> Tensor:
        """Bool [B, 1, count, U]: what the next ``count`` positions of each row may look at (causal)."""
        reach = int(self.lengths.max()) + count
        return torch.arange(reach, device=self.lengths.device) <= self.slots(count)[:, None, :, None]

    def advance(self, count: int | Tensor) -> None:
        """Take ``count`` new positions of each row (int, or int64 [B] for a ragged prefill) as past."""
        self.lengths = self.lengths + count

    def select(self, rows: Tensor) -> KVCache:
        """A cache of the rows ``rows`` int64 [R], in that order; a row may come more than once."""
        out = object.__new__(KVCache)
        out.keys, out.values = self.keys[:, rows], self.values[:, rows]
        out.lengths, out.origin = self.lengths[rows], self.origin[rows]
        out.used, out._ragged = self.used, None
        return out
