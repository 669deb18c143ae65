"""Rotary position embedding (RoFormer, 2104.09864, section 3.2), in the half-split layout that Llama uses.

Dimensions: B batch, H heads, T positions, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vall_e.family import RopeConfig

PLAIN = RopeConfig()


def frequencies(dim: int, base: float | Tensor, device: torch.device) -> Tensor:
    """Radians per position, ``base ** (-2 i / dim)``, float [..., dim / 2] for a number or a ``base`` [..., 1]."""
    return 1.0 / base ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)


def rotary(positions: Tensor, dim: int, rope: RopeConfig = PLAIN, reach: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines float [B, 1, T, dim] for ``positions`` int64 [B, T].

    Linear scaling (2306.15595, section 3.1) and dynamic NTK-aware scaling (2309.00071, section 3.3),
    both as in ``transformers``. Dynamic scaling turns all that a forward brings by the row's length at that time;
    keys that are in a cache by then stay as they were turned. Below ``rope.trained_length`` it changes nothing.

    Args:
        reach: int64 [B], how many positions each row spans, for dynamic scaling; None takes them from ``positions``,
            where padding has to be 0 so that it does not count.
    """
    base: float | Tensor = rope.base
    scaled = positions[:, None, :, None].float()
    if rope.scaling == "linear":
        scaled = scaled / rope.factor
    elif rope.scaling == "dynamic":
        reach = positions.amax(1) + 1 if reach is None else reach
        stretch = rope.factor * reach.clamp(min=rope.trained_length) / rope.trained_length - (rope.factor - 1)
        base = rope.base * stretch[:, None, None, None] ** (dim / (dim - 2))
    angles = scaled * frequencies(dim, base, positions.device)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` [B, H, T, d] turned by the angles of ``rotary``; same dtype."""
    left, right = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-right, left), dim=-1) * sin.to(x.dtype)


def signed(angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The cosines of ``rotary``, and its sines with the first half negative, as ``turn`` takes them."""
    cos, sin = angles
    left, right = sin.chunk(2, dim=-1)
    return cos, torch.cat((-left, right), dim=-1)


def turns(angles: tuple[Tensor, Tensor]) -> Tensor:
    """Matrices [B, d, d] that turn rows [*, d] from the right, for the angles [B, 1, 1, d] of ``signed``: one product
    for a single position where ``turn`` takes three operations."""
    (cos, sin), dim = angles, angles[0].shape[-1]
    eye = torch.eye(dim, dtype=cos.dtype, device=cos.device)
    return torch.addcmul(eye * cos[:, 0], eye.roll(dim // 2, 0), sin[:, 0])


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As ``rotate`` in fewer operations, with the angles of ``signed``, which are of the dtype of ``x``."""
    swapped = x.reshape(*x.shape[:-1], 2, -1).flip(-2).view(x.shape)
    return torch.addcmul(x * cos, swapped, sin)
