"""What past positions left behind, with a length per row so that ragged batches cost no padding.

A forward with a cache goes ``begin`` → layers read and write → ``end``; rows are padded on the right, and what a row
pads it neither keeps nor counts. Rows leave (``keep``) and join (``extend``) between forwards. Dimensions: B rows, G
key/value heads, S capacity, d width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from vall_e.nn.cpu import attends

WIPED = 64  # positions beyond what is in use that are made finite at once
GROWTH = 1.5  # a full buffer is replaced by one that is larger by this, so that growing costs little on average


class Cache:
    """Lengths and positions of B rows; subclasses keep their tensors in ``tensors``, rows in front.

    Attributes:
        lengths: int64 [B], past positions of each row.
        known: the same as numbers, so that no forward has to wait for the device to say them.
        origin: int64 [B], the slot whose rotary position is 0.
        longest: int64 [B], positions that each row has spanned so far (see ``reach``).
        counts: int64 [B], how many positions of the forward under way are no padding; None outside of one.
        spans: int64 [B], slots that each row has in use in the forward under way, where rows have one new position each
            and ``attend_one`` is for them; None elsewhere.
    """

    spans: Tensor | None = None

    def __init__(self, rows: int, device: torch.device) -> None:
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.origin = torch.zeros_like(self.lengths)
        self.longest = torch.zeros_like(self.lengths)
        self.known = [0] * rows
        self.counts: Tensor | None = None
        self.empty = True
        self.tensors: dict[str, list[Tensor]] = {}

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        return sum(t.numel() * t.element_size() for group in self.tensors.values() for t in group)

    def slots(self, count: int) -> Tensor:
        """Slots int64 [B, count] that the next ``count`` inputs of each row take."""
        if count == 1:
            return self.lengths[:, None]
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

    def mask(self, count: int, window: int | None = None) -> Tensor | None:
        """Bool [B, 1, count, S]: what the next ``count`` positions of each row may look at; None for all there is."""
        raise NotImplementedError(f"{type(self).__name__} keeps no keys that a mask could hide")

    def begin(self, length: int, counts: Tensor | None = None) -> None:
        """Make room for ``length`` new positions of every row, of which ``counts`` int64 [B] are no padding."""
        self.counts = torch.full_like(self.lengths, length) if counts is None else counts
        self._new = [length] * len(self.known) if counts is None else counts.tolist()

    def end(self) -> None:
        """Take the new positions as past."""
        self.lengths, self.counts, self.empty = self.lengths + self.counts, None, False
        self.known = [a + b for a, b in zip(self.known, self._new, strict=True)]

    def reserve(self, size: int) -> None:
        """There will be ``size`` positions a row."""
        return

    def select(self, rows: Tensor) -> Self:
        """A cache of the rows ``rows`` int64 [R], in that order; a row may come more than once."""
        out = copy.copy(self)
        out._pick(rows.tolist())
        out.tensors = {name: [t[rows] for t in group] for name, group in self.tensors.items()}
        return out

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the rows ``rows`` only, in that order."""
        index = self._pick(rows)
        self.tensors = {name: [t[index] for t in group] for name, group in self.tensors.items()}

    def extend(self, other: Self, rows: Sequence[int]) -> None:
        """Take the rows ``rows`` of another cache of the same kind in, behind those that are there; a row may come
        more than once."""
        index = self._join(other, rows)
        for name, group in self.tensors.items():
            theirs = other.tensors[name]
            self.tensors[name] = [torch.cat((t, new[index])) for t, new in zip(group, theirs, strict=True)]

    def _pick(self, rows: Sequence[int]) -> Tensor:
        index = torch.tensor(rows, dtype=torch.int64, device=self.lengths.device)
        self.lengths, self.origin, self.longest = (t[index] for t in (self.lengths, self.origin, self.longest))
        self.known = [self.known[row] for row in rows]
        return index

    def _join(self, other: Cache, rows: Sequence[int]) -> Tensor:
        index = torch.tensor(rows, dtype=torch.int64, device=self.lengths.device)
        for name in ("lengths", "origin", "longest"):
            setattr(self, name, torch.cat((getattr(self, name), getattr(other, name)[index])))
        self.known = self.known + [other.known[row] for row in rows]
        self.empty = self.empty and other.empty
        return index


def _buffers(
    layers: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    make: Callable[..., Tensor] = torch.zeros,
) -> dict[str, list[Tensor]]:
    """Keys and values of each layer, all zero, or as ``make`` leaves them."""
    return {name: [make(shape, dtype=dtype, device=device) for _ in range(layers)] for name in ("keys", "values")}


class KVCache(Cache):
    """Buffers of keys and values, per layer [C, G, S, d] of which the first B rows are in use; each row writes at its
    own length.

    Rows that leave are replaced by the last ones, so a leaving row costs the copy of one row at most; buffers grow when
    rows join or lengths do not fit. Memory that is not in use yet is not touched: on a CPU, room that is reserved costs
    nothing until it is needed.

    Args:
        layers, rows, heads, size, dim: layers, B, G, S, d.
        dtype, device: of the buffers.
        static: shapes and addresses change only when rows join or leave, for ``torch.compile`` and CUDA graphs: every
            forward attends to all S slots behind a mask, and running out of slots is an error (see ``reserve``).
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        size: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        static: bool = False,
    ) -> None:
        super().__init__(rows, device)
        self.size, self.used, self.static = size, 0, static
        self.tensors = _buffers(layers, (rows, heads, size, dim), dtype, device, torch.empty)
        self._wiped = 0  # slots of all rows that hold numbers: what a mask hides must not be NaN
        self._slots: Tensor | None = None

    def begin(self, length: int, counts: Tensor | None = None) -> None:
        super().begin(length, counts)
        start = max(self.known, default=0)
        self.used = self.size if self.static else start + length
        if start + length > self.size:
            if self.static:
                raise ValueError(f"the cache holds {self.size} positions and {start + length} were asked for")
            self._resize(len(self.tensors["keys"][0]), max(start + length, int(GROWTH * self.size)))
        self._wipe(self.used)
        even = not self.static and all(known == start for known in self.known)
        self._slots = None if even else self._flat(length)
        one = length == 1 and not self.static and attends(self.tensors["keys"][0], len(self.known))
        self.spans = self.lengths + 1 if one else None

    def _wipe(self, used: int) -> None:
        """Let the first ``used`` slots of all rows hold numbers."""
        if used > self._wiped:
            first, self._wiped = self._wiped, min(self.size, used + WIPED)
            for group in self.tensors.values():
                for buffer in group:
                    buffer[:, :, first : self._wiped].zero_()

    def _flat(self, length: int) -> Tensor:
        """Where the new positions lie in a buffer [B * G * S, d], int64 [B * G * length]."""
        rows, heads = len(self.known), self.tensors["keys"][0].shape[1]
        first = torch.arange(rows * heads, device=self.lengths.device).view(rows, heads, 1) * self.size
        return (first + self.slots(length)[:, None]).flatten()

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put ``keys`` and ``values`` [B, G, T, d] behind each row's past.

        Returns:
            all keys and values so far, [B, G, S, d] where S is the longest row with its new positions;
            what lies behind a row's own end is for the caller's mask to hide (see ``mask``).
        """
        rows, _, length, dim = keys.shape
        out = []
        for buffer, new in ((self.tensors["keys"][layer], keys), (self.tensors["values"][layer], values)):
            live = buffer if buffer.shape[0] == rows else buffer[:rows]
            if self._slots is None:
                live.narrow(2, self.used - length, length).copy_(new)
            else:
                live.view(-1, dim).index_copy_(0, self._slots, new.to(buffer.dtype).reshape(-1, dim))
            out.append(live.narrow(2, 0, self.used))
        return out[0], out[1]

    def mask(self, count: int, window: int | None = None) -> Tensor | None:
        start = max(self.known, default=0)
        reach = self.size if self.static else start + count
        even = not self.static and all(known == start for known in self.known)
        if even and count == 1 and (window is None or window >= reach):
            return None
        behind = self.slots(count)[:, None, :, None] - torch.arange(reach, device=self.lengths.device)
        return (behind >= 0) if window is None else (behind >= 0) & (behind < window)

    def rewind(self, lengths: Sequence[int]) -> None:
        """Forget what lies behind ``lengths`` of each row."""
        if any(new > now for new, now in zip(lengths, self.known, strict=True)):
            raise ValueError("a cache can only be rewound to a past that it had")
        self.known = list(lengths)
        self.lengths = torch.tensor(self.known, dtype=torch.int64, device=self.lengths.device)

    def select(self, rows: Tensor) -> Self:
        out = super().select(rows)
        out.used = max(out.known, default=0)
        return out

    def keep(self, rows: Sequence[int]) -> None:
        moves = [(to, row) for to, row in enumerate(rows) if to != row]
        if {row for _, row in moves} & {to for to, _ in moves}:
            self.tensors = self.select(torch.tensor(rows, device=self.lengths.device)).tensors
        else:
            for to, row in moves:
                used = self.known[row]
                for group in self.tensors.values():
                    for buffer in group:
                        buffer[to, :, :used] = buffer[row, :, :used]
        self._pick(rows)

    def extend(self, other: Self, rows: Sequence[int]) -> None:
        before, used = len(self.known), max((other.known[row] for row in rows), default=0)
        after, capacity = before + len(rows), len(self.tensors["keys"][0])
        if after > capacity or used > self.size:
            self._resize(max(after, capacity), max(used, self.size))
        self._wipe(used)
        index = self._join(other, rows)
        for name, group in self.tensors.items():
            for buffer, new in zip(group, other.tensors[name], strict=True):
                buffer[before:after, :, :used] = new[index, :, :used]

    def reserve(self, size: int) -> None:
        """Room for ``size`` positions of every row."""
        if size > self.size:
            self._resize(len(self.tensors["keys"][0]), size)

    def _resize(self, rows: int, size: int) -> None:
        """Move what is in use into larger buffers, one after the other."""
        live, used = len(self.known), max(self.known, default=0)
        for group in self.tensors.values():
            for layer, old in enumerate(group):
                group[layer] = old.new_empty(rows, old.shape[1], size, old.shape[3])
                group[layer][:, :, : self._wiped] = 0
                group[layer][:live, :, :used] = old[:live, :, :used]
        self.size = size


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
            part.begin(length, counts)

    def end(self) -> None:
        super().end()
        for part in self.parts.values():
            part.end()

    def select(self, rows: Tensor) -> Self:
        out = super().select(rows)
        out.parts = {name: part.select(rows) for name, part in self.parts.items()}
        return out

    def reserve(self, size: int) -> None:
        for part in self.parts.values():
            part.reserve(size)

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        for part in self.parts.values():
            part.keep(rows)

    def extend(self, other: Self, rows: Sequence[int]) -> None:
        super().extend(other, rows)
        for name, part in self.parts.items():
            part.extend(other.parts[name], rows)
