"""The parallel pass: each later level of a finished response in one forward (VALL-E, 2301.02111, section 4.2.2).

Dimensions: B rows, L levels, T frames, n codes per level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from vall_e.decoding import SamplingConfig
from vall_e.models.packing import IGNORE, Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import sample
from vall_e.sampling.draw import exponential


@torch.inference_mode()
def fill_levels(
    model: VallE, prompts: Sequence[Sample], first: Sequence[np.ndarray], sampling: SamplingConfig, seeds: Sequence[int]
) -> list[np.ndarray]:
    """Levels 1 to L - 1 from text, prompt and the levels below, L - 1 forwards in all.

    Args:
        prompts: samples whose text and prompt to use.
        first: level 0 of each, int64 [1, T].
        sampling: its ``nar``.

    Returns:
        codes int64 [L, T] of each.
    """
    layout = model.layout
    out = [np.concatenate((f, np.zeros((layout.levels - 1, f.shape[1]), dtype=np.int64))) for f in first]
    generators = [torch.Generator().manual_seed((seed * 1_000_003 + 7) % 2**63) for seed in seeds]
    for level in range(1, layout.levels):
        packed = pack(
            [
                replace(p, response=c, level=level, mode="level", corrupted=None, spoken=None)
                for p, c in zip(prompts, out, strict=True)
            ],
            layout,
        )
        packed = packed.to(model.device)
        hidden = model.hidden(packed)
        for i, codes in enumerate(out):
            if codes.shape[1] == 0:
                continue
            at = packed.target[i, level] != IGNORE
            logits = model.heads(model.heads.prepare(hidden[i, at]), level, []).float()
            draws = exponential(logits.shape, generators[i]).to(logits.device)
            codes[level] = sample(logits, draws, **sampling.nar.filters).cpu().numpy()
    return out
