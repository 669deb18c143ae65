"""Which of several candidates says the text best.

Dimensions: C candidates, l levels of the first pass, L levels, T frames, S phones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np

from vall_e.generation.ar import Candidate
from vall_e.generation.written import log_probabilities
from vall_e.models.packing import Sample
from vall_e.models.vall_e import VallE

FAULT = 5.0  # nats a frame: any candidate without a fault is better than one with it


class RankError(ValueError):
    """Candidates cannot be ranked as was asked."""


class Judge(Protocol):
    """A recogniser that listens to candidates."""

    def errors(self, waves: Sequence[np.ndarray], rate: int, text: str, language: str) -> list[float]:
        """Share of the words of ``text`` that each wave float32 [N] says wrong, 0 or more."""
        ...


def own_value(candidate: Candidate, faults: int) -> float:
    """Alignment and gain through the text, in nats a frame, less what is wrong with the candidate."""
    return candidate.alignment + candidate.score - FAULT * faults


def stt_losses(model: VallE, samples: Sequence[Sample]) -> list[float]:
    """How well the voice itself reads each response as its text: mean cross entropy of the phones and the end, in nats.

    Args:
        samples: C of them, with text and a response int64 [L, T] of all levels.

    Raises:
        RankError: the voice never learned the task ``stt``.
    """
    if "stt" not in model.config.all_tasks:
        raise RankError("sampling.rank stt needs a voice that was trained with the task stt (model.tasks)")
    rows = [
        replace(
            sample, task="stt", more={"source": sample.response}, symbols=sample.text, text=sample.text[:0],
            prompt=sample.prompt[:, :0], response=sample.response[:, :0], spoken=None, level=0, mode="ar",
        ) for sample in samples
    ]  # fmt: skip
    return [-p for p in log_probabilities(model, rows)]


class Ranker:
    """Chooses for ``respond``, and remembers how good what it chose is.

    Args:
        by: what decides; own values decide among equals.
        samples: what is decoded; they are told by their number.
        faults: how much is wrong with a candidate of a sample, as far as its first pass shows.
        levels: codes int64 [L, T] of a sample's candidates, whose first pass made l of the levels.
        judged: errors in words of such codes.

    Attributes:
        chosen: how good what was chosen for each sample is; the greater the better.
    """

    def __init__(
        self,
        model: VallE,
        by: Literal["auto", "alignment", "stt", "recogniser"],
        samples: Sequence[Sample],
        faults: Callable[[int, Candidate], int],
        levels: Callable[[int, Sequence[Candidate]], list[np.ndarray]],
        judged: Callable[[int, Sequence[np.ndarray]], list[float]],
    ) -> None:
        self.model, self.by, self.faults, self.levels, self.judged = model, by, faults, levels, judged
        self._index = {id(sample): index for index, sample in enumerate(samples)}
        self.chosen: dict[int, tuple[float, ...]] = {}

    def __call__(self, candidates: Sequence[Candidate], sample: Sample) -> Candidate:
        index = self._index[id(sample)]
        values = self._values(index, candidates, sample)
        best = max(range(len(candidates)), key=lambda c: values[c])
        self.chosen[index] = values[best]
        return candidates[best]

    def _values(self, index: int, candidates: Sequence[Candidate], sample: Sample) -> list[tuple[float, ...]]:
        faults = [self.faults(index, candidate) for candidate in candidates]
        own = [own_value(c, f) for c, f in zip(candidates, faults, strict=True)]
        if self.by in ("auto", "alignment"):
            return [(value,) for value in own]
        whole = self.levels(index, candidates)
        if self.by == "recogniser":
            return [(-wrong, value) for wrong, value in zip(self.judged(index, whole), own, strict=True)]
        said = [replace(sample, response=np.concatenate((sample.response, codes), axis=1)) for codes in whole]
        return [(-loss - FAULT * f, v) for loss, f, v in zip(stt_losses(self.model, said), faults, own, strict=True)]
