"""What a weight format costs: next-code distributions of the same rows with and without it.

Dimensions: M positions, n codes, L levels, l levels that a causal row shows, T frames.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.decode.bench import Bench, prompts
from benchmarks.decode.steps import plain
from vall_e.family import KINDS
from vall_e.generation.ar import decode
from vall_e.models.checkpoint import load_config, load_model
from vall_e.models.formats import use_weights
from vall_e.models.packing import IGNORE, Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.text.normalize import normalize
from vall_e.text.phonemes import phonemize
from vall_e.text.tokenizer import Tokenizer

ROWS, FRAMES = 4, 64


def of_formats(bench: Bench, formats: Sequence[str]) -> dict[str, dict[str, float | str]]:
    """By weight format: ``kl`` (mean KL divergence from float32 in nats a frame), ``top1`` (share of frames whose
    likeliest code is the same), both of level 0 on teacher-forced rows, and ``of``: whose weights.

    The trained voice of the options says its text in float32, and those rows are read by all formats; without a voice
    it is the reference with random weights, on random codes.
    """
    voice = bench.options.voice
    if voice is None:
        model, whose = bench.model("ref"), "random weights of the reference, random codes"
        rows = _random_rows(bench.options.codes)
    else:
        model, whose = load_model(voice, "cpu")[0], f"the trained voice {voice.name}"
        rows = _spoken_rows(model, voice, bench.options.text)
    exact, found = _log_p(model, rows), {}
    for weights in formats:
        other = bench.model("ref", weights) if voice is None else use_weights(copy.deepcopy(model), weights)
        found[weights] = _compare(exact, _log_p(other, rows)) | {"of": whose}
    return found


def _compare(exact: Tensor, other: Tensor) -> dict[str, float | str]:
    """Log-probabilities float [M, n + 1] of both."""
    kl = (exact.exp() * (exact - other)).sum(-1).mean()
    return {"kl": float(kl), "top1": float((exact.argmax(-1) == other.argmax(-1)).float().mean())}


@torch.inference_mode()
def _log_p(model: VallE, rows: Sequence[Sample]) -> Tensor:
    """Of level 0 at each frame and at the end of the rows, float [M, n + 1]."""
    packed = pack(rows, model.layout)
    hidden = model.hidden(packed)[packed.target[:, 0] != IGNORE]
    return model.heads(model.heads.prepare(hidden), 0, []).float().log_softmax(-1)


def _random_rows(codes: int) -> list[Sample]:
    rng = np.random.default_rng(2)
    return [replace(row, response=rng.integers(codes, size=(1, FRAMES))) for row in prompts(ROWS, codes)]


def _spoken_rows(model: VallE, folder: Path, text: str) -> list[Sample]:
    """What the voice says by itself, once for each of some seeds.

    Raises:
        ValueError: it does not speak left to right.
    """
    config = load_config(folder)
    if "ar" not in KINDS[config.model.kind].modes:
        raise ValueError(f"--voice {folder}: kind {config.model.kind} is not autoregressive; take a voice with ar rows")
    phones = phonemize([normalize(text, config.language)], config.language, config.with_stress, config.words_apart)[0]
    ids = np.array(Tokenizer.load(folder / "tokenizer.json").encode(phones), dtype=np.int64)
    language = config.model.language_id(config.language)
    empty = np.zeros((config.levels, 0), dtype=np.int64)
    start = Sample(ids, empty, empty, language=language)
    rows = []
    for found in decode(model, [start] * ROWS, plain(), list(range(ROWS)), [4 * FRAMES] * ROWS):
        codes = np.zeros((config.levels, found[0].codes.shape[1]), dtype=np.int64)
        codes[: model.layout.shown] = found[0].codes
        rows.append(replace(start, response=codes))
    return rows
