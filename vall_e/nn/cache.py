"""What past positions left behind, with a length per row so that ragged batches cost no padding.

A forward with a cache goes ``begin`` → layers read and write → ``end``; rows are padded on the right, and what a row
pads it neither keeps nor counts. Dimensions: B rows, G key/value heads, S capacity, d width of a head.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor


class Cache:
    """Lengths and positions of B rows; subclasses keep their tensors in ``tensors``, rows in front.

    Attributes:
        lengths: int64 [B], past positions of each row.
        origin: int64 [B], the slot whose rotary position is 0.
        longest: int64 [B], positions that each row has spanned so far (see ``reach``).
        counts: int64 [B], how many positions of the forward under way are no padding; None outside of one.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.origin = torch.zeros_like(self.lengths)
        self.longest = torch.zeros_like(self.lengths)
        self.counts: Tensor | None = None
        self.empty = True
        self.tensors: dict[str, list[Tensor]] = {}

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        return sum(t.numel() * t.element_size() for group in self.tensors.values() for t in group)

    def slots(self, count: int) -> Tensor:
        """Slots int64 [B, count] that the next ``count`` inputs of each row take."""
        return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)

    def positions(self, count: int) -> Tensor:
        """Rotary positions int64 [B, count] of the next ``count`` inputs of each row."""
        return self.slots(count) - self.origin[:, None]

    def real(self, length: int) -> Tensor:
        """Bool [B, length]: which positions of the forward under way are no padding."""
        return torch.arange(length, device=self.lengths.device) < self.counts[:, None]

    def last(self, count: int) -> Tensor:
        """Places int64 [B, count] of each row's last positions in the forward under way."""
        return self.counts[:, None] + torch.arange(-count, 0, device=self.lengths.device)

    def reach(self, positions: Tensor) -> Tensor:
        """Greatest position of each row so far plus 1, int64 [B]; ``positions`` int64 [B, T] are those of the forward
        under way."""
        real = self.real(positions.shape[1])
        self.longest = torch.maximum(self.longest, (positions + 1).masked_fill(~real, 0).amax(1))
        return self.longest

    def mask(self, count: int, window: int | None = None) -> Tensor:
        """Bool [B, 1, count, S]: what the next ``count`` positions of each row may look at."""
        raise NotImplementedError(f"{type(self).__name__} keeps no keys that a mask could hide")

    def begin(self, length: int, counts: Tensor | None = None) -> None:
        """Make room for ``length`` new positions of every row, of which ``counts`` int64 [B] are no padding."""
        self.counts = torch.full_like(self.lengths, length) if counts is None else counts

    def end(self) -> None:
        """Take the new positions as past."""
        self.lengths, self.counts, self.empty = self.lengths + self.counts, None, False

    def select(self, rows: Tensor) -> Self:
        """A cache of the rows ``rows`` int64 [R], in that order; a row may come more than once."""
        out = copy.copy(self)
        out.lengths, out.origin, out.longest = self.lengths[rows], self.origin[rows], self.longest[rows]
        out.tensors = {name: [t[rows] for t in group] for name, group in self.tensors.items()}
        return out


def _buffers(layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, list[Tensor]]:
    """Keys and values of each layer, all zero."""
    return {
        name: [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)] for name in ("keys", "values")
    }


class KVCache(Cache):
    """Static buffers of keys and values, per layer [B, G, S, d]; each row writes at its own length.

    Args:
        layers, rows, heads, size, dim: layers, B, G, S, d.
        dtype, device: of the buffers.
    """

    def __init__(
        self, layers: int, rows: int, heads: int, size: int, dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(rows, device)
        self.size, self.used = size, 0
        self.tensors = _buffers(layers, (rows, heads, size, dim), dtype, device)
        self._ragged: Tensor | None = None

    def begin(self, length: int, counts: Tensor | None = None) -> None:
        super().begin(length, counts)
        start = int(self.lengths.max())
        self.used = start + length
        if self.used > self.size:
            raise ValueError(f"the cache holds {self.size} positions and {self.used} were asked for")
        even = bool((self.lengths == start).all())
        self._ragged = None if even else self.slots(length)[:, None, :, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put ``keys`` and ``values`` [B, G, T, d] behind each row's past.

        Returns:
            all keys and values so far, [B, G, S, d] where S is the longest row with its new positions;
            what lies behind a row's own end is for the caller's mask to hide (see ``mask``).
        """
        out = []
        for buffer, new in ((self.tensors["keys"][layer], keys), (self.tensors["values"][layer], values)):
            if self._ragged is None:
                buffer[:, :, self.used - new.shape[2] : self.used] = new
            else:
                buffer.scatter_(2, self._ragged.expand_as(new), new.to(buffer.dtype))
            out.append(buffer[:, :, : self.used])
        return out[0], out[1]

    def mask(self, count: int, window: int | None = None) -> Tensor:
        reach = int(self.lengths.max()) + count
        behind = self.slots(count)[:, None, :, None] - torch.arange(reach, device=self.lengths.device)
        return (behind >= 0) if window is None else (behind >= 0) & (behind < window)

    def rewind(self, lengths: Tensor) -> None:
        """Forget what lies behind ``lengths`` int64 [B] of each row."""
        if bool((lengths > self.lengths).any()):
            raise ValueError("a cache can only be rewound to a past that it had")
        self.lengths = lengths


class RingCache(Cache):
    """Keys and values of the last W positions of each row, per layer [B, G, W, d]: a constant size and no way back.

    Position p of a row is in slot p mod W. Args: as of ``KVCache``, with ``size`` = W.
    """

    def __init__(
        self, layers: int, rows: int, heads: int, size: int, dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(rows, device)
        self.size = size
        self.tensors = _buffers(layers, (rows, heads, size, dim), dtype, device)

    def begin(self, length: int, counts: Tensor | None = None) -> None:
        super().begin(length, counts)
        new = self._held(self.lengths + self.counts) - self.lengths[:, None]
        stays = torch.arange(self.size, device=new.device)
        self._source = torch.where(new >= 0, self.size + new, stays)[:, None, :, None]

    def _held(self, lengths: Tensor) -> Tensor:
        """Which position int64 [B, W] each slot holds once a row has ``lengths`` int64 [B]; below 0 for none."""
        last = lengths[:, None] - 1
        return last - (last - torch.arange(self.size, device=lengths.device)) % self.size

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take ``keys`` and ``values`` [B, G, T, d] up.

        Returns:
            the W slots as they were and behind them what is new, [B, G, W + T, d] (see ``mask``); of rows without a
            past only what is new, [B, G, T, d].
        """
        out = []
        for name, fresh in (("keys", keys), ("values", values)):
            ring = self.tensors[name][layer]
            both = torch.cat((ring, fresh.to(ring.dtype)), dim=2)
            self.tensors[name][layer] = both.gather(2, self._source.expand_as(ring))
            out.append(fresh if self.empty else both)
        return out[0], out[1]

    def mask(self, count: int, window: int | None = None) -> Tensor:
        """Bool [B, 1, count, W + count] over what ``write`` returns; ``window``, at most W, is W where it is None."""
        new = self.slots(count)
        keys = torch.cat((self._held(self.lengths), new), dim=1)[:, None]
        behind = new[:, :, None] - keys
        return ((keys >= 0) & (behind >= 0) & (behind < (window or self.size)))[:, None]


class JointCache(Cache):
    """Several caches of the same rows as one, for layers of several kinds.

    Args:
        parts: the caches by name.
    """

    def __init__(self, rows: int, device: torch.device, **parts: Cache) -> None:
        super().__init__(rows, device)
        self.parts = parts

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    def begin(self, length: int, counts: Tensor | None = None) -> None:
        super().begin(length, counts)
        for part in self.parts.values():
            part.begin(length, self.counts)

    def end(self) -> None:
        super().end()
        for part in self.parts.values():
            part.end()

    def select(self, rows: Tensor) -> Self:
        out = super().select(rows)
        out.parts = {name: part.select(rows) for name, part in self.parts.items()}
        return out
