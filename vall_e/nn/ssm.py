"""State spaces that go on from a past: what a causal convolution and a linear recurrence keep of each row.

Dimensions: B rows, T new positions, C channels, K width of the convolution, N numbers of state per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.nn.cache import Cache


class StateCache(Cache):
    """States of fixed size, zero at the start: memory does not grow with the past.

    Args:
        layers, rows: layers, B.
        shapes: name → shape and dtype of one row's state in one layer; ``tensors[name][layer]`` is then [B, *shape].
    """

    def __init__(
        self, layers: int, rows: int, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device
    ) -> None:
        super().__init__(rows, device)
        for name, (shape, dtype) in shapes.items():
            self.tensors[name] = [torch.zeros(rows, *shape, dtype=dtype, device=device) for _ in range(layers)]


def convolve(x: Tensor, past: Tensor, counts: Tensor, conv: nn.Conv1d) -> tuple[Tensor, Tensor]:
    """A depthwise causal convolution that goes on from its past.

    Args:
        x: float [B, T, C].
        past: float [B, C, K - 1], inputs just before.
        counts: int64 [B], positions of ``x`` that are no padding.
        conv: weight [C, 1, K]; its own padding is not used.

    Returns:
        outputs [B, T, C], and the past after ``counts`` positions, as ``past``.
    """
    seen = torch.cat((past.to(x.dtype), x.transpose(1, 2)), dim=-1)
    out = F.conv1d(seen, conv.weight, conv.bias, groups=conv.groups).transpose(1, 2)
    last = counts[:, None] + torch.arange(past.shape[-1], device=x.device)
    return out, seen.gather(-1, last[:, None].expand(past.shape)).to(past.dtype)


def recur(decay: Tensor, drive: Tensor, read: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """``h = decay * h + drive``, read out as ``sum_n h_n read_n``, position by position (2312.00752, equation 2).

    A position with decay 1 and drive 0 leaves no trace: so does padding.

    Args:
        decay, drive, read: float [B, T, ..., N], the same up to broadcasting.
        state: float [B, ..., N], h before the first position.

    Returns:
        outputs [B, T, ...], and h after the last position, as ``state``.
    """
    out = []
    for t in range(drive.shape[1]):
        state = decay[:, t] * state + drive[:, t]
        out.append((state * read[:, t]).sum(-1))
    return torch.stack(out, dim=1), state
