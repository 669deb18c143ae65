"""Recordings → manifest: ids, speakers, texts, durations and digests; what fails a gate → rejects."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vall_e.audio import save_wav
from vall_e.config import ConfigError
from vall_e.corpus import demo
from vall_e.corpus.layouts.base import STAGE, Found, Recording
from vall_e.corpus.layouts.folder import read_folder
from vall_e.corpus.layouts.table import WHOLE
from vall_e.corpus.levels import Fault, Levels, header_fault, levels_fault
from vall_e.corpus.names import Names
from vall_e.corpus.quality import Row, check_reject_rate, count_rules, reject, write_rejects
from vall_e.corpus.schema import MANIFEST, write_table
from vall_e.decoders import AudioError, blocks, read_header
from vall_e.preparation import IngestConfig
from vall_e.text.codes import espeak_name

_SAME_SECONDS = 0.5  # by which lengths that tables and headers say may differ
_REMEDY = "a language of espeak-ng, such as en-us, de or cmn, or its ISO 639 code"


def ingest(
    config: IngestConfig, out_dir: str | Path, home: str | Path = "data/ingest", progress: bool = True
) -> dict[str, Any]:
    """Make ``manifest.parquet`` and ``rejects.parquet``, and for source ``espeak`` the recordings in ``audio/``.

    Args:
        config: source, layout and gates.
        out_dir: folder to write into.
        home: where ``out_dir`` will stand in the end; paths of made recordings in the manifest begin with it.
        progress: show a bar on stderr.

    Returns:
        kept, rejected {rule: n}, layout (as named or detected), speakers, hours.

    Raises:
        ConfigError: there is nothing to read at ``config.path``, the layout is another one, or espeak-ng does not know
            ``config.language``.
        RejectRateError: more was rejected than ``config.max_reject_rate`` allows.
    """
    out_dir, home = Path(out_dir), Path(home)
    if espeak_name(config.language) is None:
        raise ConfigError(f"ingest.language {config.language!r}: espeak-ng does not speak it; {_REMEDY}")
    if config.source == "espeak":
        spec = demo.read_spec(config.path)
        found = Found("espeak")
        source: Iterable[Recording] = _spoken(spec, out_dir / "audio")
        total = len(spec.voices) * (spec.digit_strings + spec.sentences)
    else:
        found = read_folder(config)
        source, total = _told_apart(found.recordings), len(found.recordings)
    rows, rejects = [], found.rejects
    ids, speakers, groups, taken = Names(), Names(), Names(), set()
    for recording in tqdm(source, total=total, unit="file", desc=STAGE, mininterval=1, disable=not progress):
        if recording.key in taken:
            rejects.append(reject(recording.path.name, STAGE, "duplicate_id", recording.key))
            continue
        taken.add(recording.key)
        name = ids.safe(recording.key)
        row, dropped = _examine(recording, name, config)
        if row is None:
            rejects.append(dropped)
            continue
        place = home / recording.path.relative_to(out_dir) if config.source == "espeak" else recording.path
        row |= {"id": name, "path": place.as_posix(), "speaker": speakers.safe(recording.speaker)}
        row["group"] = groups.safe(recording.group) if recording.group else None
        rows.append(row)
    write_rejects(rejects, out_dir / "rejects.parquet")
    check_reject_rate(len(rows), len(rejects), config.max_reject_rate, STAGE, rejects)
    write_table(rows, MANIFEST, out_dir / "manifest.parquet")
    return {
        "kept": len(rows),
        "rejected": count_rules(rejects),
        "layout": found.layout,
        "speakers": len({row["speaker"] for row in rows}),
        "hours": round(sum(row["seconds"] for row in rows) / 3600, 4),
    }


def _told_apart(recordings: list[Recording]) -> Iterator[Recording]:
    """Files that differ in their ending only (take.wav, take.flac) keep it: they may be two recordings, or one broken
    and one whole. Whether they sound the same is for a later stage to say."""
    often = Counter(recording.key for recording in recordings)
    for recording in recordings:
        same = often[recording.key] > 1
        yield replace(recording, key=recording.key + recording.path.suffix) if same else recording


def _spoken(spec: demo.DemoSpec, folder: Path) -> Iterator[Recording]:
    """The demo corpus, spoken into ``folder`` utterance by utterance."""
    for utterance in demo.utterances(spec):
        wav, rate = demo.speak(utterance.voice, utterance.text)
        path = save_wav(folder / utterance.voice.name / f"{utterance.id}.wav", wav, rate)
        yield Recording(path, utterance.id, utterance.voice.name, utterance.text)


def _examine(recording: Recording, name: str, config: IngestConfig) -> tuple[Row | None, Row]:
    """What the manifest says of a recording's sound and text, or None and the row of its reject."""
    language = espeak_name(recording.language or config.language)
    if language is None:
        return None, reject(name, STAGE, "language", recording.language, _REMEDY)
    levels = Levels()
    try:
        header = read_header(recording.path)
        fault = header_fault(header, config)
        if fault is None:
            for block in blocks(header):
                levels.add(block)
            if not levels.count:
                raise AudioError(recording.path, "the recording has no samples", "remove the file", "empty")
            seconds = levels.count / header.sample_rate
            fault = levels_fault(levels, header.sample_rate, config) or _said_fault(recording, seconds, config)
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
        "text": recording.text,
        "language": language,
        "language_given": recording.language is not None,
        "seconds": seconds,
        "sample_rate": header.sample_rate,
        "channels": header.channels,
        "digest": digest,
        "licence": recording.licence,
    }, {}


def _said_fault(recording: Recording, seconds: float, config: IngestConfig) -> Fault | None:
    """Where what the layout says of a recording does not fit its length."""
    if recording.seconds is not None and recording.seconds < seconds - _SAME_SECONDS:
        return "stretch", f"the first {recording.seconds:g} s of {seconds:.1f} s", WHOLE
    rate = len(recording.text or "") / seconds
    most = config.max_characters_per_second
    return ("text_too_long", f"{rate:.0f} characters a second", f"{most:g}") if rate > most else None
