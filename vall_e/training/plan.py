"""What a training run would be, without running it: shapes, parameters, memory, steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vall_e.config import Params
from vall_e.models.size import cache_size
from vall_e.models.vall_e import VallE

PHONES = 128  # a guess where no tokenizer exists yet: it hardly matters
CODEC_FACTS = {  # levels, codes per level, frames per second, of published weights
    "encodec": lambda c: (round(c.bandwidth * 1000 / 750), 1024, 75.0),
    "dac": lambda c: {"44khz": (9, 1024, 86.1), "24khz": (32, 1024, 75.0), "16khz": (12, 1024, 50.0)}[c.dac_rate],
    "nemo": lambda c: (8, 1000, 44100 / 512),
    "mel": lambda c: (c.mel.levels, c.mel.codes, c.mel.sample_rate / c.mel.hop),
}
SCALARS = ("nemo",)  # codecs whose levels have no order (FSQ)


def describe(params: Params, facts: Mapping[str, Any] | None = None, phones: int = PHONES) -> dict[str, Any]:
    """Facts of the run that ``params`` asks for, with no data and no memory for weights (meta tensors).

    Args:
        facts: levels, codes, frame_rate and residual of the codec, where one is there already (data/encode/codec.json).
        phones: size of the tokenizer.

    Returns:
        codec levels, codes and frame rate; parameters; batch size in positions; steps; megabytes of weights, of
        gradients and optimiser, of activations (roughly: what the linear layers, norms and heads keep; attention's
        scores, a teacher and the loader are not counted) and in all; key/value cache per second of speech.
    """
    if facts is None:
        levels, codes, frame_rate = CODEC_FACTS[params.codec.name](params.codec)
        residual = params.codec.name not in SCALARS
    else:
        levels, codes, frame_rate, residual = (facts[name] for name in ("levels", "codes", "frame_rate", "residual"))
    with torch.device("meta"):
        model = VallE(params.model, levels, codes, phones, residual=residual)
    count = sum(p.numel() for p in model.parameters())
    config, positions = params.model, params.train.batch_frames
    width = 2 if params.train.precision != "32-true" else 4
    # inputs of the linear layers, attention and norms, per position and layer
    per_position = config.layers * (10 * config.dim + 3 * config.ff_dim)
    logits = positions * (codes + 1) * levels * 4 * 2
    activations = positions * per_position * width + logits
    state = count * 4 * 3  # gradient and at most two moments
    average = count * 4
    cache = cache_size(model.backbone).per_position * frame_rate
    megabytes = {
        "weights": count * 4, "gradients_and_optimizer": state, "average": average, "activations": activations,
    }  # fmt: skip
    return {
        "kind": config.kind,
        "codec": {"name": params.codec.name, "levels": levels, "codes": codes, "frame_rate": frame_rate},
        "parameters": count,
        "steps": params.train.max_steps,
        "positions_per_batch": positions * params.train.accumulate,
        "seconds_of_audio_per_batch_at_most": round(positions * params.train.accumulate / frame_rate, 1),
        "megabytes": {name: round(value / 2**20) for name, value in megabytes.items()}
        | {"total": round(sum(megabytes.values()) / 2**20)},
        "kv_kilobytes_per_second_of_speech": round(cache / 2**10),
    }
