"""Third pass: who speaks when (diarisation), by a pyannote pipeline through WhisperX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from vall_e import audio
from vall_e.corpus.transcription.listening import Row
from vall_e.corpus.transcription.pauses import Spoken
from vall_e.evaluation.encoder import RATE
from vall_e.preparation import DiariseConfig

Turn = tuple[float, float, str]


class DiariserError(ValueError):
    """The pipeline cannot be loaded."""


class Diariser(Protocol):
    """Turns (start, end in seconds, label) in a wave float32 [N] at 16 kHz."""

    def __call__(self, wav: np.ndarray) -> list[Turn]: ...


class PyannoteDiariser:
    """A ``Diariser`` by ``whisperx.diarize.DiarizationPipeline``.

    Raises:
        DiariserError: the pipeline did not load.
    """

    def __init__(self, config: DiariseConfig, device: str, pipeline: Any = None) -> None:
        self._config = config
        if pipeline is None:
            from whisperx.diarize import DiarizationPipeline

            try:
                pipeline = DiarizationPipeline(model_name=config.model, device=device)
            except Exception as error:
                raise DiariserError(
                    f"transcribe.diarise.model {config.model} did not load: {error}; name the folder of a pyannote "
                    "pipeline whose config.yaml names local files, or set transcribe.diarise to null"
                ) from error
        self._pipeline = pipeline

    def __call__(self, wav: np.ndarray) -> list[Turn]:
        limits = {"min_speakers": self._config.min_speakers, "max_speakers": self._config.max_speakers}
        table = self._pipeline(np.ascontiguousarray(wav, dtype=np.float32), **limits)
        columns = (table["start"], table["end"], table["speaker"])
        return sorted((float(start), float(end), str(label)) for start, end, label in zip(*columns, strict=True))


def diarise(diariser: Diariser, row: Row) -> Row:
    """``id`` and ``turns`` [[start, end, label]] of a recording, labels S0, S1 and on in the order of speaking.

    Voices are told apart over the whole recording, which is in memory at once (230 MB an hour).
    """
    try:
        turns = diariser(audio.load(row["path"], RATE)[0])
    except (audio.AudioError, RuntimeError) as error:
        return {"id": row["id"], "fault": ["diarisation_failed", str(error)]}
    names: dict[str, str] = {}
    named = [[start, end, names.setdefault(label, f"S{len(names)}")] for start, end, label in sorted(turns)]
    return {"id": row["id"], "fault": None, "turns": named}


def speakers_of(words: Sequence[Spoken], turns: Sequence[Sequence[Any]]) -> list[str]:
    """The label of each word: who speaks during most of it, else whose turn is nearest; S0 without turns."""
    if not turns:
        return ["S0"] * len(words)
    starts = np.array([turn[0] for turn in turns])
    ends = np.array([turn[1] for turn in turns])
    out = []
    for word in words:
        overlap = np.minimum(ends, word.end) - np.maximum(starts, word.start)  # negative: the distance
        best: dict[str, float] = {}
        for index in np.flatnonzero(overlap > 0):
            label = turns[index][2]
            best[label] = best.get(label, 0.0) + float(overlap[index])
        out.append(max(best, key=lambda label: (best[label], label)) if best else turns[int(np.argmax(overlap))][2])
    return out
