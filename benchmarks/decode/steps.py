"""Decoding as it is called here: everything else in this package goes through these few functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vall_e.decoding import SamplingConfig, SamplingParams, SpeculationConfig
from vall_e.generation.ar import decode
from vall_e.generation.engine import Engine
from vall_e.models.packing import Sample
from vall_e.models.vall_e import VallE


def plain(temperature: float = 1.0, speculation: SpeculationConfig | None = None) -> SamplingConfig:
    """One candidate from the model alone, as ``transformers`` draws it."""
    ar = SamplingParams(temperature=temperature)
    return SamplingConfig(ar=ar, guidance=0.0, candidates=1, retries=0, speculation=speculation)


def run(
    model: VallE, prompts: Sequence[Sample], longest: Sequence[int], sampling: SamplingConfig | None = None
) -> list[torch.Tensor]:
    """Decode one output for each prompt, of exactly ``longest`` frames. Returns codes int64 [1, N] of each.

    Raises:
        RuntimeError: a row stopped by itself, which would make what was measured meaningless.
    """
    rows = decode(model, prompts, sampling or plain(), list(range(len(prompts))), longest)
    found = [candidates[0].codes for candidates in rows]
    lengths = [codes.shape[1] for codes in found]
    if lengths != list(longest):
        raise RuntimeError(f"rows stopped by themselves: {lengths} frames of {list(longest)}")
    return [torch.from_numpy(codes) for codes in found]


class Stepper:
    """Rows that are prefilled and then decoded so many steps at a time."""

    def __init__(self, model: VallE, prompts: Sequence[Sample], longest: int) -> None:
        with torch.inference_mode():
            self.engine = Engine(model, plain())
            self.engine.add(prompts, list(range(len(prompts))), [longest + 1] * len(prompts))  # one is drawn here
        self.rows = len(prompts)

    def step(self, count: int = 1) -> None:
        """Raises RuntimeError when a row is done: ``longest`` was too short for what is measured."""
        with torch.inference_mode():
            for _ in range(count):
                if self.engine.step() < self.rows:
                    raise RuntimeError("a row ended while its steps were timed")
