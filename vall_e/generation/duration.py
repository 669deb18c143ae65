"""How long a response will be, for models that must know it before they speak. Dimensions: B rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vall_e.decoding import SamplingConfig
from vall_e.generation.ar import decode
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE

MAX_DIGITS = 5


def predict_frames(model: VallE, prompts: Sequence[Sample], longest: Sequence[int]) -> list[int]:
    """Frames of each response, between 1 and ``longest``: read at START (V2), or spelt by the task ``len``."""
    if model.duration is not None:
        with torch.inference_mode():
            packed = pack([replace(p, response=p.prompt[:, :0], mode="mask") for p in prompts], model.layout)
            packed = packed.to(model.device)
            hidden = model.hidden(packed)
            at = torch.arange(len(prompts), device=model.device)
            found = model.duration(hidden[at, packed.response]).float().exp().round().long().tolist()
    else:
        rows = [replace(p, task="len", mode="ar", response=p.prompt[:, :0]) for p in prompts]
        greedy = SamplingConfig(ar={"temperature": 0.0}, guidance=0.0, candidates=1)
        spelt = decode(model, rows, greedy, [0] * len(rows), [MAX_DIGITS] * len(rows))
        found = [int("".join(map(str, c[0].codes[0].tolist())) or "0") for c in spelt]
    return [max(1, min(most, frames)) for frames, most in zip(found, longest, strict=True)]
