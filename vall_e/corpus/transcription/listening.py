"""First pass: what is said in each recording, with the times of words where they are needed.

Short clips are heard in batches, recordings of any length by windows, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from vall_e import audio
from vall_e.corpus.transcription.languages import whisper_language
from vall_e.corpus.transcription.pauses import Spoken, break_point, place
from vall_e.evaluation.encoder import RATE
from vall_e.evaluation.hearing import Hearing, Word, compression_ratio
from vall_e.preparation import TranscribeConfig

Row = dict[str, Any]
WINDOW_SECONDS = 240.0
_BATCHES_A_CALL = 4
# Recordings without a text are real ones of unknown content, and long ones have pauses: both need VAD.
_VAD_SECONDS = 15.0


class Listener(Protocol):
    """What of ``evaluation.asr.Recogniser`` is used here."""

    def hear(
        self,
        clips: Sequence[tuple[np.ndarray, int]],
        prompt: str | None = None,
        vad: bool = False,
        words: bool = False,
        languages: Sequence[str | None] | None = None,
    ) -> list[Hearing]: ...


def needs_words(row: Row, config: TranscribeConfig) -> bool:
    """Times of words are needed to cut, and wanted where the recogniser's text is used."""
    return not row["text"] or row["seconds"] > config.max_seconds or config.diarise is not None


def given_language(row: Row) -> str | None:
    """Whisper's code of the language that the recording's layout names; None where it names none."""
    return whisper_language(row["language"]) if row["language_given"] else None


def listen(
    listener: Listener, rows: Sequence[Row], config: TranscribeConfig, advance: Callable[[int], Any]
) -> list[Row]:
    """Hear the recordings ``rows`` of the table MANIFEST.

    Returns:
        For each row, in order: ``id``; ``fault`` [rule, what happened] or None; ``language`` (Whisper's code) and
        ``language_probability``; ``windows`` [[start, end]]; ``pieces`` (start, end, text, silent, finished,
        no_speech, log_prob, compression) and ``words`` [[text, start, end, score, cut, piece]] or None. All in seconds
        of the recording.
    """
    heard: dict[str, Row] = {}
    for group, vad in _calls(rows, config):
        for entry in _hear_together(listener, group, config, vad):
            heard[entry["id"]] = entry
        advance(len(group))
    for row in rows:
        if row["id"] not in heard:
            heard[row["id"]] = _hear_by_windows(listener, row, config)
            advance(1)
    return [heard[row["id"]] for row in rows]


def _calls(rows: Sequence[Row], config: TranscribeConfig) -> Iterator[tuple[list[Row], bool]]:
    """Recordings of at most a window, in groups that are heard together: of like length, nothing is padded far."""
    by_length = sorted(rows, key=lambda row: (row["seconds"], row["id"]))
    plain = [row for row in by_length if not needs_words(row, config) and row["seconds"] <= _VAD_SECONDS]
    size = config.recogniser.batch_size * _BATCHES_A_CALL
    for start in range(0, len(plain), size):
        yield plain[start : start + size], False
    apart = {row["id"] for row in plain}
    group: list[Row] = []
    for row in by_length:
        if row["id"] in apart or row["seconds"] > WINDOW_SECONDS:
            continue
        if group and sum(other["seconds"] for other in group) + row["seconds"] > WINDOW_SECONDS:
            yield group, True
            group = []
        group.append(row)
    if group:
        yield group, True


def _hear_together(listener: Listener, rows: Sequence[Row], config: TranscribeConfig, vad: bool) -> list[Row]:
    entries, waves, loaded = [], [], []
    for row in rows:
        try:
            waves.append(audio.load(row["path"], RATE)[0])
            loaded.append(row)
        except audio.AudioError as error:
            entries.append(_faulty(row, "unreadable", str(error)))
    timed = any(needs_words(row, config) for row in loaded)
    heard = _hear(listener, waves, [given_language(row) for row in loaded], config, vad, timed)
    for row, wav, found in zip(loaded, waves, heard, strict=True):
        entry = _entry(row, found)
        if entry["fault"] is None:
            _add(entry, found, wav, 0.0, needs_words(row, config), last=True)
        entries.append(entry)
    return entries


def _hear(
    listener: Listener,
    waves: Sequence[np.ndarray],
    languages: Sequence[str | None],
    config: TranscribeConfig,
    vad: bool,
    timed: bool,
) -> list[Hearing]:
    """What is heard in each wave; where a call fails, each wave by itself, so that one costs itself only."""
    if not waves:
        return []
    try:
        return listener.hear([(wav, RATE) for wav in waves], config.prompt, vad, timed, languages)
    except RuntimeError as error:
        if len(waves) == 1:
            return [Hearing(config.recogniser.language, error=str(error))]
        alone = ([[wav], [language]] for wav, language in zip(waves, languages, strict=True))
        return [found for part in alone for found in _hear(listener, *part, config, vad, timed)]


def _hear_by_windows(listener: Listener, row: Row, config: TranscribeConfig) -> Row:
    entry: Row | None = None
    language, start, seconds = given_language(row), 0.0, row["seconds"]
    while True:
        last = start + WINDOW_SECONDS >= seconds
        try:
            wav, _ = audio.load(row["path"], RATE, start, None if last else start + WINDOW_SECONDS)
            if not last:
                wav = wav[: round(break_point(wav, RATE) * RATE)]
            found = listener.hear([(wav, RATE)], config.prompt, True, True, [language])[0]
        except audio.AudioError as error:
            return _faulty(row, "unreadable", str(error))
        except RuntimeError as error:
            return _faulty(row, "recogniser_failed", str(error))
        if entry is None:
            entry = _entry(row, found)
        if found.error:
            return _faulty(row, "recogniser_failed", found.error)
        if found.pieces and language is None:
            language = found.language
            entry |= {"language": language, "language_probability": found.language_probability}
        _add(entry, found, wav, start, True, last)
        start += len(wav) / RATE
        if last:
            return entry


def _faulty(row: Row, rule: str, value: str) -> Row:
    return {"id": row["id"], "fault": [rule, value]}


def _entry(row: Row, found: Hearing) -> Row:
    return {
        "id": row["id"],
        "fault": ["recogniser_failed", found.error] if found.error else None,
        "language": found.language,
        "language_probability": found.language_probability,
        "windows": [],
        "pieces": [],
        "words": None,
    }


def _add(entry: Row, found: Hearing, wav: np.ndarray, offset: float, timed: bool, last: bool) -> None:
    """Put what was heard in ``wav``, which begins at ``offset`` seconds, behind what is in ``entry``."""
    entry["windows"].append([offset, offset + len(wav) / RATE])
    words: list[Word] = []
    owners: list[int] = []
    for piece in found.pieces:
        heard = piece.heard
        silent = not heard.spoken
        if not silent:
            words += piece.words or ()
            owners += [len(entry["pieces"])] * len(piece.words or ())
        entry["pieces"].append(
            {
                "start": offset + piece.start,
                "end": offset + piece.end,
                "text": heard.text,
                "silent": silent,
                "finished": heard.finished,
                "no_speech": heard.no_speech,
                "log_prob": heard.log_prob,
                "compression": compression_ratio(heard.text),
            }
        )
    if timed:
        placed = place(words, wav, RATE, offset, last)
        entry["words"] = (entry["words"] or []) + [[*word, owner] for word, owner in zip(placed, owners, strict=True)]


def spoken(entry: Row) -> list[Spoken]:
    """The words of an entry."""
    return [Spoken(*word[:5]) for word in entry["words"] or ()]
