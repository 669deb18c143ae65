"""Every kind of model on every backbone: each legal cell overfits one batch of all its tasks and decodes it back.

    python -m benchmarks.matrix                      # all of them, some minutes on 2 cores
    python -m benchmarks.matrix --kinds nar-len --backbones llama yoco

A cell passes when decoding gives back what the batch held: codes left to right, level by level and from masks, written
symbols, and the length of the response. Cells that the configuration refuses are listed with the reason. Prints one
JSON object: {"cells", "passed", "failed": [...], "refused": [...], "seconds"}.

Dimensions: L levels, n codes per level.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from tqdm import tqdm

from vall_e.config import TrainConfig
from vall_e.data.makers import MAKERS, Given
from vall_e.decoding import DemaskConfig, SamplingConfig
from vall_e.family import BACKBONES, KINDS, ModelConfig
from vall_e.generation.ar import decode
from vall_e.generation.demask import demask
from vall_e.generation.duration import predict_frames
from vall_e.generation.nar import fill_levels
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.tasks import TASKS
from vall_e.training.optimizers import build_optimizer

LEVELS, CODES, PHONES = 2, 11, 9
SIZES = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff_dim": 64, "depth_dim": 32, "codebook_dim": 32}
GREEDY = SamplingConfig(ar={"temperature": 0.0}, guidance=0.0, candidates=1)
UNMASK = DemaskConfig(steps=4, later_steps=2, temperature=0.0, guidance=0.0, choice_temperature=0.0)
CHECK_EVERY = 50  # steps
NEARLY = 0.95  # accuracy of each level in the batch below which nothing is decoded: it would not come back


@dataclass(frozen=True)
class Cell:
    """A combination, as its configuration is written."""

    kind: str
    backbone: str
    options: dict[str, Any]

    def __str__(self) -> str:
        extra = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.kind} x {self.backbone}" + (f" ({extra})" if extra else "")

    def config(self) -> ModelConfig:
        """Raises ValidationError for what cannot work."""
        tasks = ("tts",) if self.kind == "nar" else tuple(MAKERS)
        sizes = SIZES | ({"mamba": {"state": 8, "head_dim": 32}} if self.backbone == "mamba2" else {})
        alignment = KINDS[self.kind].begins
        return ModelConfig(
            kind=self.kind, backbone=self.backbone, tasks=tasks, alignment=alignment, **sizes, **self.options
        )  # fmt: skip


def cells(kinds: Sequence[str], backbones: Sequence[str]) -> Iterator[Cell]:
    """All combinations, legal or not; backbones that look back also with a second, reversed run."""
    for backbone in backbones:
        variants: list[dict[str, Any]] = [{}]
        if backbone == "yoco":
            variants.append({"yoco": {"self_decoder": "sliding", "window": 8}})
        for kind in kinds:
            for options in variants:
                yield Cell(kind, backbone, options)
            if KINDS[kind].parallel and (not BACKBONES[backbone].bidirectional or backbone == "yoco"):
                yield Cell(kind, backbone, {"bidirectional": "flip"})


def utterance(seed: int, task: str) -> Sample:
    """A sample of ``task`` made of random codes."""
    rng = np.random.default_rng(seed)
    text = rng.integers(3, PHONES, size=4)
    spoken = Sample(text, *(rng.integers(CODES, size=(LEVELS, frames)) for frames in (5, 7)))
    given = Given(spoken, "ab c", rng.integers(CODES, size=(LEVELS, 6)), rng)
    if TASKS[task].mixture is not None:
        mixed, noise = rng.integers(CODES, size=(2, LEVELS, 7))
        given = replace(given, mixed=mixed, noise=noise)
    return MAKERS[task](given)


def hide(sample: Sample, frames: bool, rng: np.random.Generator) -> Sample:
    """The sample as a masked row, its masks drawn anew; sometimes all of it, as decoding begins."""
    seen, levels = sample.response.copy(), LEVELS if frames else 1
    first = int(rng.integers(levels))
    seen[first + 1 : levels] = CODES
    share = 1.0 if rng.random() < 0.3 else rng.random()
    seen[first, rng.random(seen.shape[1]) < share] = CODES
    seen[first, int(rng.integers(seen.shape[1]))] = CODES
    return replace(sample, corrupted=seen, mode="mask", spoken=None)


class Trial:
    """A model of one cell and the utterances that it is to know by heart."""

    def __init__(self, config: ModelConfig) -> None:
        torch.manual_seed(0)
        self.config, self.kind = config, KINDS[config.kind]
        self.model = VallE(config, LEVELS, CODES, PHONES)
        self.samples = [utterance(seed, task) for seed, task in enumerate(config.all_tasks)]
        self.optimizer = build_optimizer(self.model, TrainConfig(optimizer="adamw", lr=3e-3, weight_decay=0.0))
        self.rng = np.random.default_rng(1)

    def rows(self) -> list[Sample]:
        """The batch of one step: every sample in every mode of the kind."""
        out = []
        for sample in self.samples:
            if sample.vocabulary != "codes":
                out.append(sample)
                continue
            for mode in self.kind.modes:
                if mode == "ar":
                    out.append(sample)
                elif mode == "mask":
                    out += [hide(sample, self.kind.frames, self.rng) for _ in range(2)]
                else:
                    out += [replace(sample, mode="level", level=level) for level in range(1, LEVELS)]
        return out

    def fit(self, steps: int) -> list[str]:
        """Train until everything comes back. Returns what did not."""
        missing = ["nothing was tried"]
        for step in range(1, steps + 1):
            self.model.train()
            loss, figures = self.model.loss(pack(self.rows(), self.model.layout))
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            known = all(value >= NEARLY for name, value in figures.items() if name.startswith("accuracy"))
            if (known and step % CHECK_EVERY == 0) or step == steps:
                missing = self.missing()
                if not missing:
                    break
        return missing

    def missing(self) -> list[str]:
        """Tasks and passes whose output differs from what the batch held."""
        self.model.eval()
        return [f"{s.task}: {name}" for s in self.samples for name, same in self._decoded(s) if not same]

    def _decoded(self, sample: Sample) -> Iterator[tuple[str, bool]]:
        prompt = replace(sample, response=sample.response[:, :0], symbols=sample.symbols[:0], spoken=None)
        if sample.vocabulary != "codes":
            found = decode(self.model, [prompt], GREEDY, [0], [len(sample.symbols) + 3])[0][0]
            yield "written", found.finished and found.codes[0].tolist() == sample.symbols.tolist()
            return
        frames, shown = sample.response.shape[1], self.model.layout.shown
        for mode in self.kind.modes:
            if mode == "ar":
                found = decode(self.model, [prompt], GREEDY, [0], [frames + 3])[0][0]
                yield mode, found.finished and np.array_equal(found.codes, sample.response[:shown])
            elif mode == "mask":
                found = demask(self.model, [prompt], [frames], UNMASK, [0])[0][0]
                yield mode, np.array_equal(found.codes, sample.response[:shown])
                if self.model.duration is not None:
                    yield "duration", abs(predict_frames(self.model, [prompt], [99])[0] - frames) <= 1
            else:
                codes = fill_levels(self.model, [prompt], [sample.response[:1]], GREEDY, [0])[0]
                yield mode, np.array_equal(codes, sample.response)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when every legal cell passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrix", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--steps", type=int, default=600, help="training steps of a cell at most (default: 600)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # matrices this small are slower on more
    started, passed, failed, refused = time.perf_counter(), [], [], []
    for cell in (bar := tqdm(list(cells(arguments.kinds, arguments.backbones)), unit="cell")):
        bar.set_postfix_str(str(cell))
        try:
            config = cell.config()
        except ValidationError as error:
            refused.append({"cell": str(cell), "reason": error.errors()[0]["msg"].removeprefix("Value error, ")})
            continue
        began = time.perf_counter()
        missing = Trial(config).fit(arguments.steps)
        if missing:
            failed.append({"cell": str(cell), "missing": missing})
        else:
            passed.append(str(cell))
        bar.write(
            f"{cell}: {'missing ' + ', '.join(missing) if missing else 'passed'}, {time.perf_counter() - began:.0f} s",
            sys.stderr,
        )
    seconds = round(time.perf_counter() - started, 1)
    report = {"cells": len(passed) + len(failed), "passed": len(passed), "failed": failed, "refused": refused}
    print(json.dumps(report | {"seconds": seconds}, indent=1))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
