"""Second pass: the times of words by forced alignment, where there is a model for the language."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from vall_e import audio
from vall_e.corpus.transcription.languages import units
from vall_e.corpus.transcription.listening import Row
from vall_e.corpus.transcription.pauses import place
from vall_e.evaluation.alignment import UNSPACED, cached_model
from vall_e.evaluation.encoder import RATE
from vall_e.evaluation.hearing import Word


class Aligner(Protocol):
    """What of ``evaluation.alignment.ForcedAligner`` is used here."""

    def align(self, wav: np.ndarray, words: Sequence[str]) -> Sequence[Word] | None: ...


def models_for(align: str | dict[str, str], languages: Iterable[str]) -> dict[str, str]:
    """Whisper's code of a language → the alignment model that ``transcribe.align`` means for it, where there is one."""
    wanted = sorted(set(languages))
    if isinstance(align, dict):
        return {language: align[language] for language in wanted if language in align}
    if align == "off":
        return {}
    if align == "auto":
        return {language: model for language in wanted if (model := cached_model(language))}
    return dict.fromkeys(wanted, align)


def realign(aligner: Aligner, row: Row, entry: Row, advance: Callable[[int], Any]) -> Row:
    """``id`` and ``words`` as ``listening.listen`` makes them, by ``aligner``.

    A piece whose words cannot be aligned keeps its times; a recording that breaks the model has a ``fault``.
    """
    words: list[list[Any]] = []
    for number, (start, end) in enumerate(entry["windows"]):
        last = number + 1 == len(entry["windows"])
        inside = [k for k, p in enumerate(entry["pieces"]) if start <= p["start"] < end and not p["silent"]]
        try:
            wav, _ = audio.load(row["path"], RATE, start, None if last else end)
            found = [_aligned(aligner, wav, start, entry, k) for k in inside]
        except (audio.AudioError, RuntimeError) as error:
            return {"id": row["id"], "fault": ["alignment_failed", str(error)]}
        owners = [k for k, some in zip(inside, found, strict=True) for _ in some]
        placed = place([word for some in found for word in some], wav, RATE, start, last)
        words += [[*word, owner] for word, owner in zip(placed, owners, strict=True)]
    advance(1)
    return {"id": row["id"], "fault": None, "words": words}


def _aligned(aligner: Aligner, wav: np.ndarray, offset: float, entry: Row, piece: int) -> list[Word]:
    """Words of a piece in seconds of ``wav``, which begins ``offset`` seconds into the recording."""
    about = entry["pieces"][piece]
    begin = about["start"] - offset
    part = wav[int(begin * RATE) : int((about["end"] - offset) * RATE)]
    found = aligner.align(part, units(about["text"], entry["language"] not in UNSPACED))
    if found is None:
        return [Word(w[0], w[1] - offset, w[2] - offset, w[3]) for w in entry["words"] if w[5] == piece]
    return [Word(word.text, word.start + begin, word.end + begin, word.score) for word in found]
