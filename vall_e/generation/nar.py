"""The parallel pass: each later level of a finished response in one forward (VALL-E, 2301.02111, section 4.2.2).

Dimensions: R rows, L levels, T frames, n codes per level, M frames of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vall_e.decoding import SamplingConfig
from vall_e.models.packing import Sample
from vall_e.models.parallel import ParallelPasses
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import sample
from vall_e.sampling.draw import gumbel


@torch.inference_mode()
def fill_levels(
    model: VallE, prompts: Sequence[Sample], first: Sequence[np.ndarray], sampling: SamplingConfig, seeds: Sequence[int]
) -> list[np.ndarray]:
    """Levels 1 to L - 1 from text, prompt and the levels below, at most L - 1 forwards in all.

    Args:
        prompts: samples whose text and prompt to use.
        first: what is known of each, int64 [l, T]: all of level 0, and of later levels what is not n.
        sampling: its ``nar``.
        seeds: one per prompt.

    Returns:
        codes int64 [L, T] of each; what is known stays.
    """
    layout, device = model.layout, model.device
    frames = [codes.shape[1] for codes in first]
    padded = np.zeros((len(first), layout.levels, max(frames)), dtype=np.int64)
    for row, codes, length in zip(padded, first, frames, strict=True):
        row[:, :length] = layout.codes
        row[: len(codes), :length] = codes
    codes = torch.from_numpy(padded).to(device)
    generators = [torch.Generator().manual_seed((seed * 1_000_003 + 7) % 2**63) for seed in seeds]
    passes = ParallelPasses(model, prompts, frames)
    for level in range(1, layout.levels):
        wanted = codes[:, level] == layout.codes
        if not bool(wanted.any()):
            continue
        hidden = passes(codes, "level", level)[wanted]
        logits = model.heads(model.heads.prepare(hidden), level, []).float()
        noise = [
            gumbel((count, layout.codes), generator)
            for count, generator in zip(wanted.sum(1).tolist(), generators, strict=True)
        ]
        codes[:, level][wanted] = sample(logits, torch.cat(noise).to(device), **sampling.nar.filters)
    return [row[:, :length] for row, length in zip(codes.cpu().numpy(), frames, strict=True)]
