"""Random logits that the tests of samplers share."""

from __future__ import annotations

import torch
from torch import Tensor


def make_logits(rows: int = 6, size: int = 20, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def make_noise(rows: int, size: int, seed: int = 1) -> Tensor:
    return -torch.empty(rows, size).exponential_(generator=torch.Generator().manual_seed(seed)).log()
