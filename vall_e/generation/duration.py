"""How long a response will be: what the model says, what somebody asks for. Dimensions: B rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

import torch

from vall_e.decoding import SamplingConfig
from vall_e.generation.ar import decode
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE

MAX_DIGITS = 5
SPELT = 15  # lengths that are drawn of the task len: the likeliest digits (1 in front) are not those of a likely length
EARLIEST, LATEST = 0.8, 1.25  # of an asked duration, where the model itself decides when to stop


def predict_frames(model: VallE, prompts: Sequence[Sample], longest: Sequence[int]) -> list[int]:
    """Frames of each response, between 1 and ``longest``: read at START (V2), or the median of what the task ``len``
    spells, which errs least on average where lengths are uncertain. The same for the same prompt."""
    if model.duration is not None:
        with torch.inference_mode():
            packed = pack([replace(p, response=p.prompt[:, :0], mode="mask") for p in prompts], model.layout)
            packed = packed.to(model.device)
            hidden = model.hidden(packed)
            at = torch.arange(len(prompts), device=model.device)
            found = model.duration(hidden[at, packed.response]).float().exp().round().long().tolist()
    else:
        rows = [replace(p, task="len", mode="ar", response=p.prompt[:, :0]) for p in prompts]
        drawn = SamplingConfig(ar={"temperature": 1.0}, guidance=0.0, candidates=SPELT)
        spelt = decode(model, rows, drawn, [0] * len(rows), [MAX_DIGITS] * len(rows))
        found = [median_low(int("".join(map(str, c.codes[0].tolist())) or "0") for c in row) for row in spelt]
    return [max(1, min(most, frames)) for frames, most in zip(found, longest, strict=True)]


def planned_frames(
    model: VallE,
    prompts: Sequence[Sample],
    longest: Sequence[int],
    asked: Sequence[int | None],
    speeds: Sequence[float] | None = None,
    held_at: Sequence[float] | None = None,
) -> list[int]:
    """Frames that each response goes on for behind what its prompt holds of it already, between 1 and ``longest``, of a
    model that must know them before it speaks.

    Args:
        asked: frames that somebody wants; None takes the model's prediction.
        speeds: how much faster than predicted, a factor above 0; of no effect on what was asked. None: as predicted.
        held_at: the speed at which what the prompt holds was said; None: as predicted.
    """
    speeds, held_at = speeds or [1.0] * len(prompts), held_at or [1.0] * len(prompts)
    held = [p.response.shape[1] * speed for p, speed in zip(prompts, held_at, strict=True)]
    rows = [index for index, frames in enumerate(asked) if frames is None]
    most = [math.ceil(longest[i] * speeds[i] + held[i]) for i in rows]
    predicted = predict_frames(model, [prompts[i] for i in rows], most) if rows else []
    found = dict(enumerate(asked)) | {
        i: round((frames - held[i]) / speeds[i]) for i, frames in zip(rows, predicted, strict=True)
    }
    return [max(1, min(most, found[i])) for i, most in enumerate(longest)]


def stop_bounds(asked: int) -> tuple[int, int]:
    """Frames before which a row may not stop and after which it is cut off, where ``asked`` frames are wanted of a
    model that goes left to right and ends by itself."""
    return math.floor(EARLIEST * asked), max(1, math.ceil(LATEST * asked))
