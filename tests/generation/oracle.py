"""Decoding without a cache: the whole sequence anew at each step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tests.tiny import CODES, LEVELS, sample
from vall_e.decoding import SamplingConfig
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE

GREEDY = SamplingConfig(ar={"temperature": 0.0}, guidance=0.0, candidates=1)


def make_prompts(count: int = 3) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [sample(rng, 2 + i, 3 * i, 0) for i in range(count)]


def uncached(model: VallE, prompt: Sample, frames: int, strength: float) -> np.ndarray:
    """Greedy codes [l, T], plain or guided."""
    codes = prompt.response
    shown = model.layout.shown
    for _ in range(frames):
        rows = [
            replace(prompt, response=codes, spoken=None),
            replace(prompt.without_text(), response=codes),
        ]
        last = [model.heads.prepare(model.hidden(pack([row], model.layout))[0, -1:]) for row in rows]
        logits = [model.heads(h, 0, []) for h in last]
        conditioned, null = (x.log_softmax(-1) for x in logits)
        drawn = [(conditioned + strength * (conditioned - null)).argmax(-1)]
        if drawn[0] == CODES:
            break
        for level in range(1, shown):
            drawn.append(model.heads(last[0], level, drawn).argmax(-1))
        frame = np.zeros((LEVELS, 1), dtype=np.int64)
        frame[:shown, 0] = torch.cat(drawn).numpy()
        codes = np.concatenate((codes, frame), axis=1)
    return codes[:shown, prompt.response.shape[1] :]
