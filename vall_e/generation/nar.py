"""The parallel pass: each later level of a finished response in one forward (VALL-E, 2301.02111, section 4.2.2).

Dimensions: B rows, L levels, T frames, n codes per level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from vall_e.config import SamplingConfig
from vall_e.models.packing import IGNORE, Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import sample


@torch.inference_mode()
def fill_levels(
    model: VallE, prompts: Sequence[Sample], given: Sequence[np.ndarray], sampling: SamplingConfig, seeds: Sequence[int]
) -> list[np.ndarray]:
    """Levels 1 to L - 1 from text, prompt and the levels below, L - 1 forwards in all.

    Args:
        prompts: samples whose text and prompt to use.
        given: what is known of each, int64 [L, T], n where a code is to be made; all of level 0 is known.
        sampling: ``nar_temperature`` 0 is greedy.

    Returns:
        codes int64 [L, T] of each; what is given stays.
    """
    layout = model.layout
    out = [codes.copy() for codes in given]
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
            draws = torch.empty(logits.shape).exponential_(generator=generators[i]).to(logits.device)
            drawn = sample(logits, draws, temperature=sampling.nar_temperature).cpu().numpy()
            codes[level] = np.where(codes[level] == layout.codes, drawn, codes[level])
    return out
