"""Floating-point operations: what a batch needs, and what this machine can do.

Dimensions: T positions of a row, D width, N parameters of matrices.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from vall_e.models.packing import IGNORE, Packed
from vall_e.models.vall_e import VallE

PEAK_SIZES = (512, 1024, 2048)
TRIES = 4


def useful(model: VallE, batches: Sequence[Packed]) -> float:
    """Of a forward and a backward pass over what is no padding (PaLM, 2204.02311, appendix B): 6 N for each position,
    12 D T a layer for attention over all of a row, half of that where it is causal; heads where something is asked.

    Embeddings, norms, losses and the optimiser count nothing.
    """
    config = model.config
    blocks = sum(p.numel() for p in model.backbone.blocks.parameters() if p.dim() == 2)
    frame = sum(m.weight.numel() for m in model.heads.modules() if isinstance(m, nn.Linear))
    total = 0.0
    for batch in batches:
        lengths = batch.lengths.double()
        share = torch.where(batch.parallel, 1.0, 0.5)
        total += 6 * blocks * float(lengths.sum()) + 12 * config.layers * config.dim * float((share * lengths**2).sum())
        known = batch.target != IGNORE
        if model.heads.together:  # all levels of a frame, each by matrices of its own
            total += 6 * frame * int(known.any(1).sum())
        else:
            total += 6 * config.dim * model.layout.codes * int(known.sum())
    return total


def peak(dtype: torch.dtype) -> float:
    """Operations a second of the fastest of some square matrix products in ``dtype``, with torch's threads."""
    best = 0.0
    for size in PEAK_SIZES:
        a, b = torch.randn(2, size, size, dtype=dtype)
        for _ in range(TRIES):
            began = time.perf_counter()
            a @ b
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
