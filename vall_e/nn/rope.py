"""Rotary position embedding (RoFormer, 2104.09864, section 3.2), in the half-split layout that Llama uses.

Dimensions: B batch, H heads, T positions, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(positions: Tensor, dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines float [B, 1, T, dim] for ``positions`` int64 [B, T]."""
    inverse = base ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions[:, None, :, None].float() * inverse
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` [B, H, T, d] turned by the angles of ``rotary``; same dtype."""
    left, right = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-right, left), dim=-1) * sin.to(x.dtype)
