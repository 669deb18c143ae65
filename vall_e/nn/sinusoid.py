"""Sinusoidal positions (1706.03762, section 3.5). Dimensions: B batch, T positions, D width."""

from __future__ import annotations

import torch
from torch import Tensor

from vall_e.nn.rope import frequencies


def sinusoid(positions: Tensor, dim: int, base: float = 10_000.0) -> Tensor:
    """Float [B, T, dim] for ``positions`` int64 [B, T]: sines at even indices, cosines of the same angles at odd."""
    angles = positions[..., None].float() * frequencies(dim, base, positions.device)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
