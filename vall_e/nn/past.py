"""What a parallel output looks back on: keys and values that its first pass leaves and that serve all later ones.

Dimensions: B rows, P positions of the longest past, T positions of an output, G key/value heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vall_e.nn.cache import Cache


class Past(Cache):
    """The keys and values of what is before the outputs of rows that split there.

    A first forward goes over the rows in one piece. Each later one goes over outputs alone, which see the past and
    themselves whole, and leaves nothing.

    Args:
        lengths: int64 [B], positions before each row's output.
        room: the longest output.
    """

    def __init__(self, lengths: Tensor, room: int) -> None:
        super().__init__(len(lengths), lengths.device)
        self.lengths, self.known, self.room = lengths, lengths.tolist(), room
        self.width = max(self.known)
        self.tensors = {"keys": [], "values": []}

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take ``keys`` and ``values`` [B, G, T, d] up; returns them behind those of the past, [B, G, P + T, d]."""
        if self.empty:
            for name, new in (("keys", keys), ("values", values)):
                buffer = new.new_zeros(*new.shape[:2], self.width + self.room, new.shape[3])
                buffer[:, :, : self.width] = new[:, :, : self.width]
                self.tensors[name].append(buffer)
            return keys, values
        end, out = self.width + keys.shape[2], []
        for name, new in (("keys", keys), ("values", values)):
            buffer = self.tensors[name][layer]
            buffer[:, :, self.width : end] = new
            out.append(buffer[:, :, :end])
        return out[0], out[1]

    def mask(self, count: int, window: int | None = None) -> Tensor:
        """Bool [B, 1, 1, P + count]: all that is no padding, seen by every position of the output."""
        past = torch.arange(self.width, device=self.lengths.device) < self.lengths[:, None]
        return torch.cat((past, self.real(count)), dim=1)[:, None, None]

    def end(self) -> None:
        self.counts, self.empty = None, False
