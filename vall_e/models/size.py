"""What a model takes: parameters by part, bytes of weights, bytes of the cache. Works on the meta device.

Sizes are counted on the tensors themselves, so that no backbone's formula is written here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vall_e.backbones.base import Backbone

PROBE = 4096  # positions of the caches that are compared; more than any window


@dataclass(frozen=True)
class CacheSize:
    """Memory of one row's past.

    Attributes:
        per_position: bytes that each position adds.
        fixed: bytes that a row takes however long it is (recurrent states, windows).
    """

    per_position: float
    fixed: int


def parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of each part of a model, by the part's name; what is shared counts once."""
    out: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        out[name.split(".")[0]] += parameter.numel()
    return dict(out)


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of all weights.

    Returns:
        ``fp32``; ``bf16``; ``int8``, matrices at one byte with a bf16 scale a row, the rest bf16; ``ternary``, what
        ternary blocks (2402.17764) would take, four weights a byte and a float32 scale a matrix, the rest bf16.
    """
    out = dict.fromkeys(("fp32", "bf16", "int8", "ternary"), 0)
    for name, parameter in model.named_parameters():
        count, matrix = parameter.numel(), parameter.dim() == 2
        out["fp32"] += 4 * count
        out["bf16"] += 2 * count
        out["int8"] += count + 2 * parameter.shape[0] if matrix else 2 * count
        out["ternary"] += _packed(parameter) if matrix and ".blocks." in name else 2 * count
    return out


def cache_size(backbone: Backbone, dtype: torch.dtype = torch.float32) -> CacheSize:
    """Measured on two caches of one row, in which the backbone keeps its past as ``dtype``."""
    short, long = (backbone.new_cache(1, n, dtype, torch.device("meta")).bytes for n in (PROBE, 2 * PROBE))
    per_position = (long - short) / PROBE
    return CacheSize(per_position, round(short - per_position * PROBE))


def _packed(matrix: Tensor) -> int:
    rows, columns = matrix.shape
    return rows * -(-columns // 4) + 4
