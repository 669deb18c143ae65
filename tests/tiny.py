"""Tiny models and data that several tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vall_e.config import JoinConfig, TrainConfig
from vall_e.data.corpus import CodesCorpus, Utterance
from vall_e.data.makers import MAKERS, Given
from vall_e.family import KINDS, ModelConfig
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.tasks import TASKS

LEVELS, CODES, PHONES = 3, 11, 9
KNOWN = 0.05  # nats


def model_config(kind: str = "ar-depth", **changes: object) -> ModelConfig:
    sizes = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff_dim": 48, "depth_dim": 32, "codebook_dim": 32}
    sizes["alignment"] = "ar" in KINDS[kind].modes
    return ModelConfig(kind=kind, **(sizes | changes))


def build(kind: str = "ar-depth", seed: int = 0, *, residual: bool = True, **changes: object) -> VallE:
    torch.manual_seed(seed)
    return VallE(model_config(kind, **changes), LEVELS, CODES, PHONES, residual=residual).eval()


def sample(rng: np.random.Generator, text: int = 4, prompt: int = 5, response: int = 6, level: int = 0) -> Sample:
    def codes(frames: int) -> np.ndarray:
        return rng.integers(CODES, size=(LEVELS, frames))

    spoken = np.stack(2 * [np.arange(response) * text // response]) if text and level == 0 else None
    mode = "level" if level else "ar"
    return Sample(rng.integers(3, PHONES, size=text), codes(prompt), codes(response), level, spoken=spoken, mode=mode)


def masked(rng: np.random.Generator, model: ModelConfig, share: float = 0.6, **sizes: int) -> Sample:
    """A sample of mode ``mask``."""
    plain = sample(rng, **sizes)
    seen = plain.response.copy()
    levels = LEVELS if KINDS[model.kind].frames else 1
    seen[:levels][rng.random((levels, seen.shape[1])) < share] = CODES
    seen[:levels, 0] = CODES
    return replace(plain, corrupted=seen, mode="mask", spoken=None)


def rows(model: ModelConfig, seed: int = 0) -> list[Sample]:
    """A row of every mode that the kind is made of."""
    rng, out = np.random.default_rng(seed), []
    for mode in KINDS[model.kind].modes:
        if mode == "ar":
            out.append(sample(rng))
        elif mode == "mask":
            out.append(masked(rng, model))
        else:
            out += [sample(rng, level=level) for level in range(1, LEVELS)]
    return out


def overfit(
    model: VallE, samples: Sequence[Sample], steps: int = 150, lr: float = 5e-3, **options: object
) -> tuple[Tensor, dict[str, Tensor]]:
    """Train on one batch until all of it is known (``KNOWN``), or for ``steps``.

    Returns:
        the last result of ``VallE.loss``, whose ``options`` are given.
    """
    packed = pack(samples, model.train().layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        loss, figures = model.loss(packed, **options)
        if loss < KNOWN and all(value == 1 for name, value in figures.items() if name.startswith("accuracy")):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach(), figures


def of_task(task: str, seed: int = 0, **sizes: int) -> Sample:
    """A sample of any task."""
    rng = np.random.default_rng(seed)
    given = Given(sample(rng, **sizes), "ab c", rng.integers(CODES, size=(LEVELS, 9)), rng)
    if TASKS[task].mixture is not None:
        mixed, noise = rng.integers(CODES, size=(2, *given.sample.response.shape))
        given = replace(given, mixed=mixed, noise=noise)
    return MAKERS[task](given)


def corpus(
    utterances: int = 24, speakers: int = 3, seed: int = 0, languages: tuple[str, ...] = ("en-us",)
) -> CodesCorpus:
    """Words "w0" to "w3" by a few speakers; a word's codes depend on the word, so there is something to learn.
    A speaker's utterances take turns in the languages."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(utterances):
        word = index % 4
        frames = 4 + word
        codes = (np.arange(LEVELS)[:, None] + word * 2 + np.arange(frames)) % CODES
        speaker, language = f"s{index % speakers}", languages[index // speakers % len(languages)]
        phones = np.array([4 + word])
        rows.append(Utterance(f"u{index}", speaker, f"w{word}", phones, codes.astype(np.int16), language))
    silence = rng.integers(CODES, size=(LEVELS, 5)).astype(np.int16)
    return CodesCorpus(tuple(rows), silence, 50.0, {"u0": (3, 6)})


def train_config(**changes: object) -> TrainConfig:
    sizes = {"max_steps": 6, "batch_frames": 120, "prompt_seconds": (0.1, 0.2), "join": JoinConfig(max_clips=3)}
    return TrainConfig(**(sizes | changes))
