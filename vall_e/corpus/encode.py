"""The encode stage: recordings to codes, one Parquet shard at a time.

An utterance is brought to one loudness and resampled to the codec's rate; ``encode.speeds`` adds copies of
training utterances at other speeds, whose pitch moves with the speed, as speakers of their own (``name@0.9``).
``encode.mixtures`` adds each training and validation clip in noise and under another voice, in tables of their own.

Shards do not depend on each other, so any number of processes, killed and started again, writes the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from vall_e.codecs.base import Codec, load_codec
from vall_e.config import Params
from vall_e.corpus.clips import STAGE, encode_clips, prepare
from vall_e.corpus.executor import POISONED, Shard, one_thread, run_shards
from vall_e.corpus.mixtures import Mixer, Partners, Sources, Voice, encode_mixtures, survey
from vall_e.corpus.quality import Row, check_reject_rate, count_rules, may_be_read, reject, write_rejects
from vall_e.corpus.schema import (
    CODES,
    MIXTURES,
    PHONES,
    REJECTS,
    UTTERANCES,
    read_rows,
    read_table,
    shard_files,
    write_table,
)
from vall_e.corpus.splits import TEST
from vall_e.corpus.work import WorkFolder, digest_of, key_of
from vall_e.preparation import CodecConfig, EncodeConfig

SILENCE_SECONDS = 0.5
SILENCE_NOISE = 3e-4  # digital silence is a sound that no recording has
WINDOW_BATCHES = 16  # batches are drawn from this many batches' worth of audio, so that memory stays flat
WAVES_MIXED = 3  # of a clip besides its own: in noise, the noise, under another voice
Tools = tuple[Codec, Mixer | None]


@dataclass(frozen=True)
class EncodeJob(Shard):
    """Utterances of one shard.

    Attributes:
        voices: for a clip by its id, utterances to mix it with.
    """

    voices: Mapping[str, Sequence[Voice]] = field(default_factory=dict)


def encode(
    config: Params,
    manifest: Path,
    phones: Path,
    codec_folder: Path,
    out_dir: Path,
    work_root: Path = Path(".work"),
    progress: bool = True,
) -> dict[str, Any]:
    """Write ``shard-00000.parquet`` and so on, with ``encode.mixtures`` ``mixtures-00000.parquet`` and so on beside
    them, ``rejects.parquet`` and ``codec.json`` into ``out_dir``.

    Args:
        manifest: table UTTERANCES.
        phones: table PHONES; utterances without a row there were dropped before and are not looked at.
        codec_folder: what ``fit_codec`` saved.
        work_root: where finished shards wait for the others.
        progress: show a bar on stderr.

    Returns:
        flat figures: seconds, kept, rejected by rule, copies, hours, frames, shards; with mixtures also noisy and
        overlapped, numbers of mixtures.

    Raises:
        ValueError: nothing is left to encode.
        ConfigError: a folder of ``encode.mixtures`` has nothing to mix with.
        RejectRateError: more utterances were rejected than ``encode.max_reject_rate`` allows.
    """
    started = time.perf_counter()
    settings, mixed = config.encode, config.encode.mixtures
    rows = _utterances(manifest, phones)
    if not rows:
        raise ValueError(f"{phones} and {manifest} have no utterance in common: run quality and phonemize again")
    sources, unusable = (None, []) if mixed is None else survey(mixed)
    partners = None if mixed is None or mixed.overlap_db is None else Partners(rows, mixed.seed)
    shards = [rows[at : at + settings.shard_size] for at in range(0, len(rows), settings.shard_size)]
    work = WorkFolder(STAGE, _key(config, manifest, phones, codec_folder, sources), work_root)
    _forget(work, shards)
    pending = [index for index in range(len(shards)) if not work.done(_shard_name(index))]
    with tqdm(total=len(rows), unit="utt", desc=STAGE, mininterval=1, disable=not progress) as bar:
        bar.update(len(rows) - sum(len(shards[index]) for index in pending))
        run_shards(
            partial(_tools, config, codec_folder, sources),
            partial(_write_shard, settings, work.path),
            (_job(index, shards[index], partners, settings) for index in pending),
            config.executor,
            bar.update,
            work.path,
        )
    with one_thread():
        facts = json.dumps(codec_facts(load_codec(config.codec, codec_folder)), indent=1) + "\n"
    work.commit("codec.json", lambda path: path.write_text(facts, encoding="utf-8"))
    figures = _finish(settings, work, len(shards), out_dir, {row["id"] for row in rows}, unusable)
    return figures | {"seconds": round(time.perf_counter() - started, 2)}


def codec_facts(codec: Codec) -> dict[str, Any]:
    """What later stages must know about the codec, with the codes of half a second of silence [L][T]."""
    noise = np.random.default_rng(0).standard_normal(int(SILENCE_SECONDS * codec.sample_rate)).astype(np.float32)
    silence = codec.encode(torch.from_numpy(SILENCE_NOISE * noise)[None, None])[0]
    names = ("name", "sample_rate", "frame_rate", "levels", "codes", "residual")
    return {name: getattr(codec, name) for name in names} | {"silence": silence.tolist()}


def load_codes(folder: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All shards of an encode folder as one table (schema CODES), in order.

    Raises:
        FileNotFoundError: there are no shards.
        ValueError: a shard is not readable or lacks a column.
    """
    return pa.concat_tables([read_table(path, CODES, columns) for path in shard_files(folder)]).unify_dictionaries()


def _utterances(manifest: Path, phones: Path) -> list[dict[str, Any]]:
    """Manifest rows with text and phones, ordered by id."""
    spoken = {row["id"]: row for row in read_rows(phones, PHONES)}
    columns = ["id", "path", "start", "end", "group", "speaker", "language", "split", "seconds"]
    rows = [row | spoken[row["id"]] for row in read_rows(manifest, UTTERANCES, columns) if row["id"] in spoken]
    return sorted(rows, key=lambda row: row["id"])


def _key(config: Params, manifest: Path, phones: Path, codec_folder: Path, sources: Sources | None = None) -> str:
    corpus = Path(__file__).parent
    params = config.encode.model_dump(mode="json", exclude={"max_reject_rate"})
    own = [Path(__file__), *(corpus / f"{name}.py" for name in ("clips", "mixing", "mixtures", "schema"))]
    code = [*own, corpus.parent / "audio.py", corpus.parent / "codecs"]
    found = {} if sources is None else {"noises": sources.noises, "rooms": sources.rooms}
    sounds = [f"{kind} {name} {digest_of(path)}" for kind, paths in found.items() for name, path in paths.items()]
    return key_of(
        Path(manifest), Path(phones), Path(codec_folder), config.codec.name, *sounds, params=params, code=code
    )


def _forget(work: WorkFolder, shards: Sequence[Sequence[Row]]) -> None:
    """Have the finished shards made again in which recordings could not be read that may be read now."""
    for index, rows in enumerate(shards):
        if work.done(_shard_name(index)):
            paths = {row["id"]: row["path"] for row in rows}
            found = read_rows(work.path / _rejects_name(index), REJECTS, ["id", "rule"])
            if may_be_read((row["rule"], paths[row["id"]]) for row in found if row["id"] in paths):
                work.forget(_shard_name(index))


def _device(config: CodecConfig) -> str:
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _tools(config: Params, codec_folder: Path, sources: Sources | None) -> Tools:
    """What a process works with."""
    codec, mixed = load_codec(config.codec, codec_folder, _device(config.codec)), config.encode.mixtures
    if mixed is None or sources is None:
        return codec, None
    return codec, Mixer(mixed, config.encode, sources, codec.sample_rate)


def _job(index: int, rows: list[dict[str, Any]], partners: Partners | None, settings: EncodeConfig) -> EncodeJob:
    voices = {} if partners is None else partners.of(rows, settings)
    return EncodeJob(_shard_name(index), rows, number=index, voices=voices)


def _write_shard(
    settings: EncodeConfig, folder: Path, tools: Tools, job: EncodeJob, advance: Callable[[int], Any]
) -> None:
    codec, mixer = tools
    done: list[dict[str, Any]] = []
    mixed: list[dict[str, Any]] = []
    rejected = [reject(row["id"], STAGE, POISONED, why) for row, why in job.poisoned]
    for window in _windows(job.rows, settings):
        clips = []
        for row in window:
            good, bad = prepare(row, settings, codec)
            clips += good
            rejected += bad
        done += encode_clips(codec, clips, settings.batch_seconds)
        if mixer is not None:
            seen = [clip for clip in clips if clip.row["split"] != TEST]
            made = [m for clip in seen for m in mixer.mixtures(clip, job.voices.get(clip.row["id"], ()))]
            mixed += encode_mixtures(codec, made, settings.batch_seconds)
        advance(len(window))
    if job.trial:
        return
    # The shard is what marks its work as done, so it comes last.
    write_table(rejected, REJECTS, folder / _rejects_name(job.number))
    if mixer is not None:
        write_table(mixed, MIXTURES, folder / _mixtures_name(job.number))
    write_table(done, CODES, folder / job.name)


def _windows(rows: Sequence[dict[str, Any]], settings: EncodeConfig) -> Iterator[list[dict[str, Any]]]:
    waves = (1 + len(settings.speeds)) * (1 if settings.mixtures is None else 1 + WAVES_MIXED)
    limit = WINDOW_BATCHES * settings.batch_seconds / waves
    window: list[dict[str, Any]] = []
    total = 0.0
    for row in rows:
        if window and total + row["seconds"] > limit:
            yield window
            window, total = [], 0.0
        window.append(row)
        total += row["seconds"]
    if window:
        yield window


def _finish(
    settings: EncodeConfig, work: WorkFolder, count: int, out_dir: Path, ids: set[str], unusable: list[Row]
) -> dict[str, Any]:
    """Check and publish.

    Args:
        ids: utterances that were asked for, without their copies.
        unusable: rejects of what was to be mixed in.
    """
    rejects = [row for index in range(count) for row in read_rows(work.path / _rejects_name(index), REJECTS)] + unusable
    # Also when the check fails, the stage's folder says what was dropped and why.
    write_rejects(rejects, Path(out_dir) / "rejects.parquet")
    table = load_codes(work.path, ["id", "source", "frames", "seconds"])
    kept = pc.sum(pc.equal(table["id"], table["source"])).as_py() or 0
    check_reject_rate(kept, len({row["id"] for row in rejects} & ids), settings.max_reject_rate, STAGE, rejects)
    write_rejects(rejects, work.path / "rejects.parquet")
    names = [_shard_name(index) for index in range(count)]
    figures = {
        "kept": kept,
        "rejected": count_rules(rejects),
        "copies": len(table) - kept,
        "hours": round((pc.sum(table["seconds"]).as_py() or 0.0) / 3600, 4),
        "frames": pc.sum(table["frames"]).as_py() or 0,
        "shards": count,
    }
    if settings.mixtures is not None:
        tables = [_mixtures_name(index) for index in range(count)]
        names += tables
        kinds = [row["kind"] for name in tables for row in read_rows(work.path / name, MIXTURES, ["kind"])]
        figures |= {"noisy": kinds.count("noise"), "overlapped": kinds.count("overlap")}
    work.publish(out_dir, [*names, "rejects.parquet", "codec.json"])
    return figures


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def _mixtures_name(index: int) -> str:
    return f"mixtures-{index:05d}.parquet"


def _rejects_name(index: int) -> str:
    return f"rejects-{index:05d}.parquet"
