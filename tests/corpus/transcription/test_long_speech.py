"""Speech of more than a minute through the real detector and the bundled Whisper: cut in pauses, all of it kept.

What was said where is known, because the recording is joined from utterances.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.corpus.transcription.bursts import RATE
from tests.corpus.transcription.stand_ins import recording
from vall_e import audio
from vall_e.corpus import demo
from vall_e.corpus.schema import MANIFEST, TRANSCRIPTS, read_rows, write_table
from vall_e.corpus.transcribe import transcribe
from vall_e.corpus.transcription import listening
from vall_e.corpus.transcription.checking import character_error_rate
from vall_e.corpus.transcription.pauses import FRAME_SECONDS, levels_db
from vall_e.evaluation.asr import Recogniser
from vall_e.evaluation.vad import SpeechFinder
from vall_e.preparation import RecogniserConfig, TranscribeConfig

pytestmark = pytest.mark.slow
LONGEST = 8.0
ROOM = 3e-4  # level of the noise in pauses, about that of the recordings' own
LOUD_DB, QUIET_DB = 20.0, 35.0  # below the loudest frames: speech is louder, a pause is quieter


class Said(NamedTuple):
    """An utterance and where it is, seconds."""

    text: str
    start: float
    end: float


class Long(NamedTuple):
    """A recording float32 [N] at ``RATE`` and what is said in it."""

    wav: np.ndarray
    said: list[Said]

    @property
    def text(self) -> str:
        return " ".join(said.text for said in self.said)

    def levels(self) -> np.ndarray:
        """dB [F] of each 10 ms, below the loudest ones."""
        levels = levels_db(self.wav, RATE)
        return levels - np.percentile(levels, 99)


SENTENCES = (
    "The harbour was quiet before the storm reached the coast, and most of the boats had been tied up since morning.",
    "Nobody expected the train.",
    "She opened the letter slowly, read it twice, and put it back into the drawer without a single word.",
    "When the rain had stopped, the children ran down to the river to look for the small wooden bridge.",
    "There was nothing left of it.",
    "An old man who sold apples at the corner told them that the water had carried it away during the night.",
    "Later in the evening, after a long dinner, the teacher explained why the mountain looks blue from far away.",
    "Everybody agreed.",
    "In the end they agreed to meet again on Friday morning, and everybody would bring some paper and a pen.",
    "The visitors left early, because the road over the hills is dark and narrow.",
)


def _ljspeech(root: Path) -> list[tuple[str, np.ndarray]]:
    folder = root.parent / "shared" / "data" / "ljspeech"
    if not folder.is_dir():
        pytest.skip("../shared/data/ljspeech is not on this machine")
    lines = sorted(line.split("|") for line in (folder / "metadata.csv").read_text(encoding="utf-8").splitlines())
    return [(text, audio.load(folder / "wavs" / f"{name}.flac", RATE)[0]) for name, text, _ in lines[:10]]


def _espeak(_: Path) -> list[tuple[str, np.ndarray]]:
    voice = demo.Voice(name="a", voice="en-us+edward", rate=150, gap=1)
    return [(text, audio.resample(*demo.speak(voice, text), RATE)) for text in SENTENCES]


@pytest.fixture(scope="module", params=[_ljspeech, _espeak], ids=["ljspeech", "espeak"])
def long(request: pytest.FixtureRequest, project_root: Path) -> Long:
    """Utterances with pauses of 0.3 to 4 s between them, in which the room is heard."""
    random = np.random.default_rng(0)
    parts, said, at = [_room(random, 1.0)], [], RATE
    for text, wav in request.param(project_root):
        said.append(Said(text, at / RATE, (at + len(wav)) / RATE))
        pause = _room(random, random.choice([0.3, 0.6, 1.2, 4.0]))
        parts += [wav, pause]
        at += len(wav) + len(pause)
    return Long(np.concatenate(parts), said)


def _room(random: np.random.Generator, seconds: float) -> np.ndarray:
    return random.normal(0, ROOM, int(seconds * RATE)).astype(np.float32)


def test_the_detector_finds_all_speech_in_stretches_that_a_window_holds(long: Long) -> None:
    for longest in (29.5, 12.0):
        found = SpeechFinder("pyannote", "cpu", longest)(long.wav)
        assert all(0 <= start < end <= len(long.wav) / RATE and end - start <= longest for start, end in found)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
        assert _loud_share(long, found) > 0.995
    assert SpeechFinder("pyannote", "cpu", 29.5)(_room(np.random.default_rng(1), 20.0)) == []


def _loud_share(long: Long, spans: list[tuple[float, float]]) -> float:
    """Share of the loud frames that lies within ``spans`` (seconds)."""
    times = np.flatnonzero(long.levels() > -LOUD_DB) * FRAME_SECONDS
    inside = np.zeros(len(times), dtype=bool)
    for start, end in spans:
        inside |= (times >= start - FRAME_SECONDS) & (times < end)
    return float(inside.mean())


def _between_cuts(long: Long, rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What was said, and the texts found, between pauses of the recording that were cut at."""
    said: list[str] = []
    before = 0.0
    for one, after in itertools.zip_longest(long.said, long.said[1:]):
        said.append(one.text)
        inside = [row for row in rows if before <= (row["start"] + row["end"]) / 2 < one.end]
        if after is None or (inside and one.end - 0.05 <= inside[-1]["end"] <= after.start + 0.05):
            yield " ".join(said), " ".join(row["text"] for row in inside)
            before, said = one.end, []


@pytest.mark.parametrize(("given", "window"), [(False, 240.0), (True, 240.0), (False, 25.0)])
def test_utterances_are_whole_words_between_pauses(
    long: Long, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool, window: float
) -> None:
    """With the recording's text and without; and read in windows, which are cut in pauses as well."""
    monkeypatch.setattr(listening, "WINDOW_SECONDS", window)
    row = recording("long", tmp_path / "long.wav", long.wav, long.text if given else None)
    manifest = write_table([row], MANIFEST, tmp_path / "manifest.parquet")
    config = TranscribeConfig(align="off", max_seconds=LONGEST, max_cer=0.5)
    figures = transcribe(config, manifest, tmp_path / "out", tmp_path / "work", progress=False)
    rows = read_rows(tmp_path / "out/transcripts.parquet", TRANSCRIPTS)
    assert len(long.wav) > 60 * RATE and figures["cut"] == 1 and not figures["rejected"]
    spans = [(row["start"], row["end"]) for row in rows]
    assert all(0.5 <= end - start <= LONGEST for start, end in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    # Nothing loud is left out, and nothing is cut through: around each end there are 30 ms of a pause.
    assert _loud_share(long, spans) > 0.999
    levels = long.levels()
    for time in itertools.chain.from_iterable(spans):
        at = round(time / FRAME_SECONDS)
        assert np.median(levels[max(0, at - 2) : at + 2]) < -QUIET_DB, time
    # All that was said comes back, and none of it in the text of a neighbour.
    if given:
        assert " ".join(row["text"] for row in rows) == long.text
    for said, found in _between_cuts(long, rows):
        assert character_error_rate(said, found, "en-us") < 0.1, (said, found)
    # Pieces heard alone say their texts: no word lost its beginning or end. (Whisper tiny loops in one of them.)
    alone = Recogniser(RecogniserConfig()).transcribe(
        [(long.wav[int(start * RATE) : int(end * RATE)], RATE) for start, end in spans]
    )
    rates = [character_error_rate(row["text"], heard, "en-us") for row, heard in zip(rows, alone, strict=True)]
    assert np.mean(np.array(rates) <= 0.15) > 0.9, rates
