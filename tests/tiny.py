"""Tiny models and data that several tests share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from vall_e.config import TrainConfig
from vall_e.corpus.schema import CODES as SHARD
from vall_e.corpus.schema import MIXTURES, SIMILAR, write_table
from vall_e.data.corpus import CodesCorpus
from vall_e.data.makers import MAKERS, Given
from vall_e.family import KINDS, ModelConfig
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.regimen import JoinConfig
from vall_e.tasks import TASKS
from vall_e.text.tokenizer import Tokenizer

LEVELS, CODES, PHONES = 3, 11, 9
KNOWN = 0.05  # nats
NOISY, ALONE, BOTH = 100, 200, 300  # added to the codes of mixtures, so that one sees where they are from


def model_config(kind: str = "ar-depth", **changes: object) -> ModelConfig:
    sizes = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff_dim": 48, "depth_dim": 32, "codebook_dim": 32}
    sizes["alignment"] = KINDS[kind].begins
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
    return replace(plain, corrupted=seen, mode="mask")


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


TOKENIZER = Tokenizer("abcdef")  # ids 3 to 8


@cache
def corpus(
    utterances: int = 24,
    speakers: int = 3,
    seed: int = 0,
    languages: tuple[str, ...] = ("en-us",),
    mixtures: tuple[str, ...] = (),
    mixed: int = 1,
) -> CodesCorpus:
    """Words "w0" to "w3" by a few speakers; a word's codes depend on the word, so there is something to learn.
    A speaker's utterances take turns in the languages. Of ``mixtures`` (kinds), each ``mixed``-th utterance has an
    overlap; their codes are the utterance's and NOISY, ALONE or BOTH."""
    rng = np.random.default_rng(seed)
    rows, made = [], []
    for index in range(utterances):
        word = index % 4
        frames = 4 + word
        codes = ((np.arange(LEVELS)[:, None] + word * 2 + np.arange(frames)) % CODES).astype(np.int16).reshape(-1)
        speaker, language = f"s{index % speakers}", languages[index // speakers % len(languages)]
        facts = {"id": f"u{index}", "frames": frames, "levels": LEVELS}
        rows.append(facts | {
            "speaker": speaker, "language": language, "group": f"g{index % 2}", "split": "train", "text": f"w{word}",
            "phones": ["bcde"[word]], "codes": codes, "seconds": frames / 50, "source": f"u{index}",
        })  # fmt: skip
        facts |= {"other": "x", "ratio_db": 0.0, "room": None}
        if "noise" in mixtures:
            made.append(facts | {"kind": "noise", "codes": codes + NOISY, "noise": codes + ALONE})
        if "overlap" in mixtures and index % mixed == mixed - 1:
            made.append(facts | {"kind": "overlap", "codes": codes + BOTH, "noise": None})
    silence = rng.integers(CODES, size=(LEVELS, 5)).tolist()
    with TemporaryDirectory() as name:  # what is mapped stays readable
        folder = Path(name)
        write_table(rows, SHARD, folder / "shard-00000.parquet")
        if made:
            write_table(made, MIXTURES, folder / "mixtures-00000.parquet")
        (folder / "codec.json").write_text(
            json.dumps({"silence": silence, "frame_rate": 50.0, "levels": LEVELS, "residual": True})
        )
        write_table([{"id": "u0", "neighbours": ["u3", "u6"], "scores": [1, 1]}], SIMILAR, folder / "similar.parquet")
        return CodesCorpus.load(folder, TOKENIZER, "train", folder / "work", folder / "similar.parquet", mixtures)


def train_config(**changes: object) -> TrainConfig:
    sizes = {"max_steps": 6, "batch_frames": 120, "prompt_seconds": (0.1, 0.2), "join": JoinConfig(max_clips=3)}
    return TrainConfig(**(sizes | changes))
