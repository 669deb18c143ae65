"""Recordings → manifest: ids, speakers, texts, durations, digests and splits; what fails a gate → rejects."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vall_e.audio import AudioError, load, probe, save_wav
from vall_e.config import ConfigError
from vall_e.corpus import demo
from vall_e.corpus.layouts import Names, Recording, read_folder
from vall_e.corpus.quality import (
    Row,
    check_reject_rate,
    count_rules,
    duration_fault,
    reject,
    waveform_fault,
    write_rejects,
)
from vall_e.corpus.schema import MANIFEST, write_table
from vall_e.corpus.splits import TEST, TRAIN, VAL, Candidate, assign
from vall_e.preparation import IngestConfig
from vall_e.text.normalize import normalize

STAGE = "ingest"


def ingest(
    config: IngestConfig, out_dir: str | Path, home: str | Path = "data/ingest", progress: bool = True
) -> dict[str, Any]:
    """Make ``manifest.parquet`` and ``rejects.parquet``, and for source ``espeak`` the recordings in ``audio/``.

    Args:
        config: source, layout, gates and split.
        out_dir: folder to write into.
        home: where ``out_dir`` will stand in the end; paths of made recordings in the manifest begin with it.
        progress: show a bar on stderr.

    Returns:
        kept, rejected {rule: n}, speakers, hours, train, val, test (numbers of utterances).

    Raises:
        ConfigError: nothing to read at ``config.path``, or ``config`` names speakers that are not there.
        RejectRateError: more was rejected than ``config.max_reject_rate`` allows.
    """
    out_dir, home = Path(out_dir), Path(home)
    test_speakers: tuple[str, ...] = ()
    rejects: list[Row] = []
    if config.source == "espeak":
        spec = demo.read_spec(config.path)
        test_speakers = tuple(voice.name for voice in spec.voices if voice.test)
        source: Iterable[Recording] = _spoken(spec, out_dir / "audio")
        total = len(spec.voices) * (spec.digit_strings + spec.sentences)
    else:
        found, rejects = read_folder(config, STAGE)
        source, total = found, len(found)
    rows = []
    ids, speakers, taken = Names(), Names(), set()
    for recording in tqdm(source, total=total, unit="utt", desc=STAGE, mininterval=1, disable=not progress):
        row = None
        if recording.key in taken:
            dropped = reject(recording.path.name, STAGE, "duplicate_id", recording.key)
        else:
            taken.add(recording.key)
            row, dropped = _examine(recording, ids.safe(recording.key), speakers.safe(recording.speaker), config)
        if row is None:
            rejects.append(dropped)
            continue
        if config.source == "espeak":
            row["path"] = (home / recording.path.relative_to(out_dir)).as_posix()
        rows.append(row)
    write_rejects(rejects, out_dir / "rejects.parquet")
    check_reject_rate(len(rows), len(rejects), config.max_reject_rate, STAGE, rejects)
    _split(rows, config, test_speakers)
    write_table(rows, MANIFEST, out_dir / "manifest.parquet")
    splits = Counter(row["split"] for row in rows)
    return {
        "kept": len(rows),
        "rejected": count_rules(rejects),
        "speakers": len({row["speaker"] for row in rows}),
        "hours": round(sum(row["seconds"] for row in rows) / 3600, 4),
        **{split: splits[split] for split in (TRAIN, VAL, TEST)},
    }


def _spoken(spec: demo.DemoSpec, folder: Path) -> Iterator[Recording]:
    """The demo corpus, spoken into ``folder`` utterance by utterance."""
    for utterance in demo.utterances(spec):
        wav, rate = demo.speak(utterance.voice, utterance.text)
        path = save_wav(folder / utterance.voice.name / f"{utterance.id}.wav", wav, rate)
        yield Recording(path, utterance.id, utterance.voice.name, utterance.text)


def _examine(recording: Recording, name: str, speaker: str, config: IngestConfig) -> tuple[Row | None, Row]:
    """The manifest's row of a recording, or None and the row of its reject."""
    try:
        info = probe(recording.path)
        # An hour-long file is turned away by its header and never decoded; some headers do not know their length.
        fault = duration_fault(info.seconds, config) if info.seconds > config.max_seconds else None
        if fault is None:
            wav, rate = load(recording.path)
            fault = waveform_fault(wav, rate, config)
        if fault is None:
            with recording.path.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
    except AudioError as error:
        return None, reject(name, STAGE, error.rule, f"{error.path}: {error.reason}", error.remedy)
    except OSError as error:
        return None, reject(name, STAGE, "unreadable", f"{recording.path}: {error.strerror}")
    if fault is not None:
        rule, value, threshold = fault
        return None, reject(name, STAGE, rule, value, threshold)
    return {
        "id": name,
        "path": recording.path.as_posix(),
        "speaker": speaker,
        "text": recording.text,
        "language": config.language,
        "split": TRAIN,
        "seconds": len(wav) / rate,
        "sample_rate": rate,
        "channels": info.channels,
        "digest": digest,
    }, {}


def _split(rows: list[Row], config: IngestConfig, test_speakers: tuple[str, ...]) -> None:
    """Fill in ``split``. Raises ConfigError for a test speaker that the corpus does not have."""
    known = {row["speaker"] for row in rows}
    strangers = sorted(set(config.test_speakers) - known)
    if strangers:
        raise ConfigError(
            f"ingest.test_speakers names {', '.join(strangers)}, which the corpus does not have; "
            f"it has {', '.join(sorted(known))}"
        )
    candidates = [
        Candidate(row["id"], row["speaker"], normalize(row["text"], row["language"]) if row["text"] else None)
        for row in rows
    ]
    splits = assign(candidates, config, test_speakers)
    for row in rows:
        row["split"] = splits[row["id"]]
    if not any(row["split"] == TRAIN for row in rows):
        raise ConfigError("ingest.test_speakers leave no speaker to train on: name fewer")
