"""The quality stage: every utterance is measured, gated, kept once and given a split.

Measuring is the long part. It is done a shard at a time and stays in the work folder under a key of its own (what was
heard and how silence is cut), so that a killed run goes on where it was and another threshold, another split or another
text hears nothing again. Gates, duplicates and splits need all measures and are decided at the end, in one process.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vall_e import audio
from vall_e.config import ConfigError, Params
from vall_e.corpus import demo, gates, measures, waterfall
from vall_e.corpus.executor import POISONED, Shard, run_shards
from vall_e.corpus.fingerprints import fingerprint, near_duplicates
from vall_e.corpus.quality import Row, check_reject_rate, count_rules, may_be_read, reject, write_rejects
from vall_e.corpus.schema import (
    MANIFEST,
    MEASURES,
    REJECTS,
    TRANSCRIPTS,
    UTTERANCES,
    read_rows,
    write_table,
)
from vall_e.corpus.splits import TEST, TRAIN, VAL, Candidate, assign
from vall_e.corpus.work import WorkFolder, code_of, key_of
from vall_e.preparation import EncodeConfig, IngestConfig, QualityConfig
from vall_e.text.normalize import normalize

if TYPE_CHECKING:
    from vall_e.evaluation.mos import Dnsmos

STAGE = "quality"
LINKED = 0.8  # share of equal bits from which two utterances are kept in one split, if both are kept
APART = 0.85  # share from which utterances of two speakers are one sound: voices of a synthesiser are alike
RULES = (
    POISONED, "missing", "empty", "unreadable", "truncated", "not_finite", "silent", "too_short", "quiet", "noisy",
    "upsampled", "bandwidth", "dnsmos", "language", "too_long", "clipped", "flat_tops", "rate", "duplicate",
    "near_duplicate",
)  # fmt: skip
_DECIDED = ("characters_per_second", "language_probability", "duplicate_of", "duplicate_bits")
_SHARD = pa.schema(
    [field for field in MEASURES if field.name not in _DECIDED]
    + [pa.field("rule", pa.string()), pa.field("reason", pa.string()), pa.field("print", pa.list_(pa.uint32()))]
)
CODE = (
    "audio.py", "corpus/fingerprints.py", "corpus/measures.py", "corpus/screen.py", "decoders.py", "evaluation/mos.py",
)  # fmt: skip


def screen(
    config: Params,
    manifest: Path,
    transcripts: Path,
    out_dir: Path,
    work_root: Path = Path(".work"),
    progress: bool = True,
) -> dict[str, Any]:
    """Make ``manifest.parquet`` (schema UTTERANCES), ``measures.parquet``, ``rejects.parquet`` and the waterfall.

    Args:
        config: sections quality, split, encode (where silence begins), ingest (the demo's speakers for testing) and
            executor are read.
        manifest: table MANIFEST.
        transcripts: table TRANSCRIPTS.
        out_dir: folder to write into.
        work_root: where measures are kept, after the run as well.
        progress: show a bar on stderr.

    Returns:
        kept, rejected {rule: n}, speakers, hours, train, val, test (numbers of utterances).

    Raises:
        ConfigError: ``split.test_speakers`` are not in the corpus, or all there are.
        RejectRateError: more was rejected than ``quality.max_reject_rate`` allows.
    """
    rows = _utterances(manifest, transcripts)
    measured = _measure(config, rows, work_root, progress)
    for row in measured.values():
        row |= _of_the_text(row)
    heard = {name: row for name, row in measured.items() if row["rule"] is None}
    dropped = {name: (row["rule"], row["reason"], None) for name, row in measured.items() if row["rule"]}
    dropped |= gates.faults(list(heard.values()), config.quality)
    good = {name: row for name, row in heard.items() if name not in dropped}
    twins, links = _duplicates(good, config.quality)
    dropped |= twins
    kept = [row for name, row in good.items() if name not in dropped]
    _write_evidence(measured, dropped, Path(out_dir))
    rejects = read_rows(Path(out_dir) / "rejects.parquet", REJECTS)
    check_reject_rate(len(kept), len(rejects), config.quality.max_reject_rate, STAGE, rejects)
    splits = _splits(kept, links, config)
    write_table([row | {"split": splits[row["id"]]} for row in kept], UTTERANCES, Path(out_dir) / "manifest.parquet")
    counts = Counter(splits.values())
    return {
        "kept": len(kept),
        "rejected": count_rules(rejects),
        "speakers": len({row["speaker"] for row in kept}),
        "hours": round(sum(row["seconds"] for row in kept) / 3600, 4),
        **{split: counts[split] for split in (TRAIN, VAL, TEST)},
    }


def _utterances(manifest: Path, transcripts: Path) -> list[Row]:
    """Utterances with the facts of their recordings, ordered by id."""
    recordings = {row["id"]: row for row in read_rows(manifest, MANIFEST)}
    out = [recordings[said["recording"]] | said for said in read_rows(transcripts, TRANSCRIPTS)]
    return sorted(out, key=lambda row: row["id"])


def _measure(config: Params, rows: Sequence[Row], work_root: Path, progress: bool) -> dict[str, Row]:
    """Id → the utterance's row with its measures; ``rule`` and ``reason`` where it cannot be heard."""
    settings, judged = config.quality, config.quality.min_dnsmos is not None
    heard = hashlib.sha256()
    for row in rows:
        heard.update(f"{row['id']}\0{row['digest']}\0{row['start']!r}\0{row['end']!r}\n".encode())
    trim = [config.encode.trim_db, config.encode.trim_margin_seconds]
    params = {"trim": trim, "dnsmos": judged, "shard_size": settings.shard_size, "columns": _SHARD.names}
    key = key_of(heard.hexdigest(), params=params, code=code_of(*CODE))
    work = WorkFolder(STAGE, key, work_root)
    starts = range(0, len(rows), settings.shard_size)
    shards = [Shard(_name(index), rows[at : at + settings.shard_size]) for index, at in enumerate(starts)]
    pending = [shard for shard in shards if not work.done(shard.name) or _may_be_read(work.path, shard)]
    with tqdm(total=len(rows), unit="utt", desc=STAGE, mininterval=1, disable=not progress) as bar:
        bar.update(len(rows) - sum(len(shard.rows) for shard in pending))
        setup, shard_of = partial(_tools, judged), partial(_write_shard, config.encode, work.path)
        run_shards(setup, shard_of, pending, config.executor, bar.update, work.path)
    by_id = {row["id"]: row for row in rows}
    found = [row for shard in shards for row in _read_shard(work.path / shard.name)]
    return {row["id"]: by_id[row["id"]] | row for row in found}


def _may_be_read(folder: Path, shard: Shard) -> bool:
    rules = pq.read_table(folder / shard.name, columns=["id", "rule"]).to_pylist()
    paths = {row["id"]: row["path"] for row in shard.rows}
    return may_be_read((row["rule"], paths[row["id"]]) for row in rules)


def _tools(judged: bool) -> Dnsmos | None:
    if not judged:
        return None
    from vall_e.evaluation.mos import Dnsmos

    return Dnsmos(threads=1)


def _write_shard(
    settings: EncodeConfig, folder: Path, judge: Dnsmos | None, job: Shard, advance: Callable[[int], Any]
) -> None:
    done = [_unheard(row, POISONED, why) for row, why in job.poisoned]
    for row in job.rows:
        done.append(_heard(row, settings, judge))
        advance(1)
    if not job.trial:
        write_table(done, _SHARD, folder / job.name)


def _unheard(row: Row, rule: str, reason: str) -> Row:
    """A row of a shard without measures."""
    facts = {"id": row["id"], "start": row["start"], "end": row["end"], "seconds": row["end"] - row["start"]}
    return dict.fromkeys(_SHARD.names) | facts | {"rule": rule, "reason": reason}


def _heard(row: Row, settings: EncodeConfig, judge: Dnsmos | None) -> Row:
    """A row of a shard: the measures of an utterance, or why there are none."""
    try:
        wav, rate = audio.load(row["path"], start=row["start"], end=row["end"])
    except audio.AudioError as error:
        return _unheard(row, error.rule, f"{error.path}: {error.reason}")
    first, last = 0, len(wav)
    if settings.trim_db is not None:
        first, last = audio.sound_bounds(wav, rate, settings.trim_db, settings.trim_margin_seconds)
    origin, wav = round(row["start"] * rate), wav[first:last]
    hertz = measures.bandwidth(wav, rate)
    return dict.fromkeys(_SHARD.names) | {
        "id": row["id"],
        "start": (origin + first) / rate,
        "end": (origin + last) / rate,
        "seconds": (last - first) / rate,
        "clipped": measures.full_scale(wav),
        "flat_tops": measures.flat_tops(wav),
        "lufs": audio.measure_loudness(wav, rate),
        "snr_db": measures.wada_snr(wav),
        "bandwidth_hz": hertz,
        "content_rate": measures.content_rate(hertz, rate),
        "dnsmos": judge.score(wav, rate) if judge is not None else None,
        "samples": hashlib.sha256(f"{rate} ".encode() + wav.tobytes()).hexdigest(),
        "print": fingerprint(wav, rate),
    }


def _read_shard(path: Path) -> list[Row]:
    table = pq.read_table(path)
    prints = [words.values.to_numpy() if words.is_valid else np.zeros(0, np.uint32) for words in table["print"]]
    return [
        row | {"print": words} for row, words in zip(table.drop_columns(["print"]).to_pylist(), prints, strict=True)
    ]


def _of_the_text(row: Row) -> Row:
    said = normalize(row["text"], row["language"])
    letters = sum(character.isalnum() for character in said)
    return {"normalised": said or None, "characters_per_second": letters / row["seconds"] if row["seconds"] else None}


def _duplicates(rows: dict[str, Row], config: QualityConfig) -> tuple[dict[str, gates.Fault], list[tuple[str, str]]]:
    """Rejects for sounds that are there already, and pairs of kept ones that are one sound. Adds ``duplicate_of``."""
    same = gates.exact_duplicates(rows.values())
    out: dict[str, gates.Fault] = {}
    if config.exact_duplicates:
        out = {name: ("duplicate", f"the samples of {first}", "once") for name, first in same.items()}
        for name, first in same.items():
            rows[name] |= {"duplicate_of": first, "duplicate_bits": 1.0}
    names = [name for name in rows if name not in out]
    least = min(LINKED, config.near_duplicates or LINKED)
    alike = near_duplicates([rows[name]["print"] for name in names], least)
    found = [(names[one], names[other], bits) for one, other, bits in alike]
    pairs = [pair for pair in found if pair[2] >= APART or rows[pair[0]]["speaker"] == rows[pair[1]]["speaker"]]
    instead: dict[str, str] = {}
    if config.near_duplicates is not None:
        wanted = [pair for pair in pairs if pair[2] >= config.near_duplicates]
        for name, (first, bits) in gates.chosen(wanted, rows).items():
            instead[name] = first
            rows[name] |= {"duplicate_of": first, "duplicate_bits": bits}
            out[name] = ("near_duplicate", f"{bits:.3f} of the bits of {first}", f"below {config.near_duplicates:g}")
    linked = [(one, other) for one, other, _ in pairs]
    if not config.exact_duplicates:
        linked += same.items()
    ends = [(instead.get(one, one), instead.get(other, other)) for one, other in linked]
    return out, [(one, other) for one, other in ends if one != other]


def _splits(rows: Sequence[Row], links: Sequence[tuple[str, str]], config: Params) -> dict[str, str]:
    """Split of every id. Raises ConfigError for a test speaker that the corpus does not have."""
    known = {row["speaker"] for row in rows}
    strangers = sorted(set(config.split.test_speakers) - known)
    if strangers:
        raise ConfigError(
            f"split.test_speakers names {', '.join(strangers)}, which the corpus does not have; "
            f"it has {', '.join(sorted(known))}"
        )
    candidates = [Candidate(row["id"], row["speaker"], row["normalised"], row["recording"]) for row in rows]
    splits = assign(candidates, config.split, _demo_test_speakers(config.ingest), links)
    if TRAIN not in splits.values():
        raise ConfigError("split.test_speakers leave no speaker to train on: name fewer")
    return splits


def _demo_test_speakers(config: IngestConfig) -> list[str]:
    """The voices that the demo corpus itself keeps for testing."""
    return (
        [voice.name for voice in demo.read_spec(config.path).voices if voice.test] if config.source == "espeak" else []
    )


def _write_evidence(measured: dict[str, Row], dropped: dict[str, gates.Fault], out_dir: Path) -> None:
    """What was measured and what was dropped, also of a run that then fails."""
    blank = dict.fromkeys(_DECIDED)
    table = [{name: (blank | row)[name] for name in MEASURES.names} for row in measured.values()]
    write_table(table, MEASURES, out_dir / "measures.parquet")
    write_rejects([reject(name, STAGE, *fault) for name, fault in dropped.items()], out_dir / "rejects.parquet")
    seconds = {name: row["seconds"] for name, row in measured.items()}
    found = waterfall.steps(seconds, [(name, fault[0]) for name, fault in dropped.items()], RULES)
    waterfall.write_csv(found, out_dir / "waterfall.csv")
    waterfall.draw(found, out_dir / "waterfall.png")


def _name(index: int) -> str:
    return f"measures-{index:05d}.parquet"
