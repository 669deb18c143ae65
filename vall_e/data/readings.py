"""A few fixed texts of a split to be read aloud while a model trains, each with a prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from vall_e.data.samples import SampleMaker
from vall_e.models.packing import Sample

MOST = 4096  # utterances among which they are chosen


@dataclass(frozen=True)
class Reading:
    """Something to read aloud.

    Attributes:
        name: of its files.
        text: normalised.
        language: espeak-ng's name.
        sample: of task ``tts``; its response int64 [L, T] is how the recording goes.
    """

    name: str
    text: str
    language: str
    sample: Sample


def readings(maker: SampleMaker, count: int, seed: int) -> list[Reading]:
    """``count`` of them or as many as there are utterances: speakers in turn, the same for the same ``seed``."""
    rng = np.random.default_rng((seed, 3))
    utterances = maker.corpus.utterances
    seen: Counter[int] = Counter()
    turns = []
    for index in rng.permutation(len(utterances))[:MOST].tolist():
        speaker = int(utterances.groups["speaker"].code[index])
        turns.append((seen[speaker], len(turns), index))
        seen[speaker] += 1
    found = []
    for number, (*_, index) in enumerate(sorted(turns)[:count]):
        sample, clips = maker.reading(index, rng)
        text = " ".join(clip.text for clip in clips)
        found.append(Reading(f"{number:02d}-{_plain(clips[0].speaker)}", text, clips[0].language, sample))
    return found


def _plain(name: str) -> str:
    """A speaker's name as part of a file's."""
    return "".join(c if c.isalnum() else "-" for c in name)[:40]
