"""The encode stage: recordings to codes, one Parquet shard at a time.

A recording is trimmed, brought to one loudness and resampled to the codec's rate; ``encode.speeds`` adds copies of
training utterances at other speeds, whose pitch moves with the speed, as speakers of their own (``name@0.9``).

The codes of a clip do not depend on its neighbours in a batch: clips of different lengths share one only when the
codec is ``padding_safe``; each clip is filled up to whole frames. Shards do not depend on each other, so any number
of processes, killed and started again, writes the same bytes.

Dimensions: N samples, L levels, T frames.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from vall_e.audio import AudioError, load, normalize_loudness, resample, trim_silence
from vall_e.codecs.base import Codec, load_codec
from vall_e.config import CodecConfig, EncodeConfig, Params
from vall_e.corpus.executor import one_thread, run_shards
from vall_e.corpus.quality import check_reject_rate, count_rules, reject, write_rejects
from vall_e.corpus.schema import CODES, MANIFEST, PHONES, REJECTS, read_rows, read_table, shard_files, write_table
from vall_e.corpus.work import WorkFolder, key_of, write_atomic

STAGE = "encode"
SILENCE_SECONDS = 0.5
SILENCE_NOISE = 3e-4  # digital silence is a sound that no recording has
MIN_SECONDS = 0.1
MIN_PEAK = 1e-5
WINDOW_BATCHES = 16  # batches are drawn from this many batches' worth of audio, so that memory stays flat


@dataclass(frozen=True)
class Clip:
    """A waveform at the codec's rate, filled up to whole frames.

    Attributes:
        wav: float32 [N], N a multiple of the samples per frame.
        frames: T.
        seconds: before filling up.
    """

    row: dict[str, Any]
    wav: np.ndarray
    frames: int
    seconds: float


def encode(
    config: Params,
    manifest: Path,
    phones: Path,
    codec_folder: Path,
    out_dir: Path,
    work_root: Path = Path(".work"),
    progress: bool = True,
) -> dict[str, Any]:
    """Write ``shard-00000.parquet`` and so on, ``rejects.parquet`` and ``codec.json`` into ``out_dir``.

    Args:
        manifest: table MANIFEST.
        phones: table PHONES; utterances without a row there were dropped before and are not looked at.
        codec_folder: what ``fit_codec`` saved.
        work_root: where finished shards wait for the others.
        progress: show a bar on stderr.

    Returns:
        flat figures: seconds, kept, rejected by rule, copies, hours, frames, shards.

    Raises:
        ValueError: nothing is left to encode.
        RejectRateError: more utterances were rejected than ``encode.max_reject_rate`` allows.
    """
    started = time.perf_counter()
    settings = config.encode
    rows = _utterances(manifest, phones)
    if not rows:
        raise ValueError(f"{phones} and {manifest} have no utterance in common: run ingest and phonemize again")
    shards = [rows[at : at + settings.shard_size] for at in range(0, len(rows), settings.shard_size)]
    work = WorkFolder(STAGE, _key(config, manifest, phones, codec_folder), work_root)
    pending = [index for index in range(len(shards)) if not work.done(_shard_name(index))]
    with tqdm(total=len(rows), unit="utt", desc=STAGE, mininterval=1, disable=not progress) as bar:
        bar.update(len(rows) - sum(len(shards[index]) for index in pending))
        run_shards(
            partial(load_codec, config.codec, codec_folder, _device(config.codec)),
            partial(_write_shard, settings, work.path),
            [(index, shards[index]) for index in pending],
            settings.workers,
            bar.update,
        )
    with one_thread():
        facts = json.dumps(codec_facts(load_codec(config.codec, codec_folder)), indent=1) + "\n"
    work.commit("codec.json", lambda path: path.write_text(facts, encoding="utf-8"))
    figures = _finish(settings, work, len(shards), out_dir, {row["id"] for row in rows})
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


def batches(frames: Sequence[int], limit: int, mixed: bool) -> list[list[int]]:
    """Indices of clips, batched by length: frames times rows stays within ``limit`` unless one clip is longer.

    Args:
        frames: T of each clip.
        limit: frames in one batch, padding included.
        mixed: clips of different lengths may share a batch.
    """
    out: list[list[int]] = []
    for index in sorted(range(len(frames)), key=lambda i: (frames[i], i)):
        length = frames[index]
        last = out[-1] if out else []
        if last and (len(last) + 1) * length <= limit and (mixed or frames[last[0]] == length):
            last.append(index)
        else:
            out.append([index])
    return out


def prepare(row: dict[str, Any], settings: EncodeConfig, codec: Codec) -> tuple[list[Clip], list[dict[str, Any]]]:
    """The clips of one utterance, its copies at other speeds among them, and the rejects (schema REJECTS)."""
    try:
        wav, rate = load(row["path"])
    except AudioError as error:
        return [], [reject(row["id"], STAGE, "unreadable", error.reason)]
    peak = float(np.abs(wav).max())
    if peak < MIN_PEAK:
        return [], [reject(row["id"], STAGE, "silent", f"peak {peak:.1e}", f"{MIN_PEAK:.0e}")]
    if settings.trim_db is not None:
        wav = trim_silence(wav, rate, settings.trim_db, settings.trim_margin_seconds)
    if settings.loudness_lufs is not None:
        wav = normalize_loudness(wav, rate, settings.loudness_lufs)
    clips, rejects = [], []
    for speed in (1.0, *(settings.speeds if row["split"] == "train" else ())):
        suffix = "" if speed == 1.0 else f"@{speed:g}"
        copy = row | {"id": row["id"] + suffix, "speaker": row["speaker"] + suffix, "source": row["id"]}
        played = resample(wav, round(rate * speed), codec.sample_rate)
        seconds = len(played) / codec.sample_rate
        if seconds < MIN_SECONDS:
            rejects.append(reject(copy["id"], STAGE, "too_short", f"{seconds:.3f} s", f"{MIN_SECONDS} s"))
            continue
        hop = round(codec.sample_rate / codec.frame_rate)
        whole = np.pad(played, (0, -len(played) % hop))
        clips.append(Clip(copy, whole, len(whole) // hop, seconds))
    return clips, rejects


def encode_clips(codec: Codec, clips: Sequence[Clip], batch_seconds: float) -> list[dict[str, Any]]:
    """Rows of schema CODES, in the order of ``clips``."""
    rows: list[dict[str, Any]] = [{}] * len(clips)
    mixed = bool(getattr(codec, "padding_safe", False))
    for batch in batches([clip.frames for clip in clips], int(batch_seconds * codec.frame_rate), mixed):
        longest = max(len(clips[i].wav) for i in batch)
        wav = torch.from_numpy(np.stack([np.pad(clips[i].wav, (0, longest - len(clips[i].wav))) for i in batch]))
        codes = codec.encode(wav[:, None]).cpu().numpy().astype(np.int16)
        for i, code in zip(batch, codes, strict=True):
            clip = clips[i]
            kept = {name: clip.row[name] for name in ("id", "speaker", "language", "split", "text", "phones", "source")}
            rows[i] = kept | {
                "frames": clip.frames, "levels": codec.levels, "seconds": clip.seconds,
                "codes": code[:, : clip.frames].reshape(-1),
            }  # fmt: skip
    return rows


def _utterances(manifest: Path, phones: Path) -> list[dict[str, Any]]:
    """Manifest rows with text and phones, ordered by id."""
    spoken = {row["id"]: row for row in read_rows(phones, PHONES)}
    columns = ["id", "path", "speaker", "language", "split", "seconds"]
    rows = [row | spoken[row["id"]] for row in read_rows(manifest, MANIFEST, columns) if row["id"] in spoken]
    return sorted(rows, key=lambda row: row["id"])


def _key(config: Params, manifest: Path, phones: Path, codec_folder: Path) -> str:
    package = Path(__file__).parent.parent
    params = config.encode.model_dump(mode="json", exclude={"workers", "max_reject_rate"})
    code = [Path(__file__), Path(__file__).with_name("schema.py"), package / "audio.py", package / "codecs"]
    return key_of(Path(manifest), Path(phones), Path(codec_folder), config.codec.name, params=params, code=code)


def _device(config: CodecConfig) -> str:
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _write_shard(
    settings: EncodeConfig,
    folder: Path,
    codec: Codec,
    job: tuple[int, list[dict[str, Any]]],
    advance: Callable[[int], Any],
) -> None:
    index, rows = job
    done: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for window in _windows(rows, settings):
        clips = []
        for row in window:
            good, bad = prepare(row, settings, codec)
            clips += good
            rejected += bad
        done += encode_clips(codec, clips, settings.batch_seconds)
        advance(len(window))
    # The shard is what marks its work as done, so it comes last.
    write_atomic(folder / _rejects_name(index), lambda path: write_table(rejected, REJECTS, path))
    write_atomic(folder / _shard_name(index), lambda path: write_table(done, CODES, path))


def _windows(rows: list[dict[str, Any]], settings: EncodeConfig) -> Iterator[list[dict[str, Any]]]:
    limit = WINDOW_BATCHES * settings.batch_seconds / (1 + len(settings.speeds))
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


def _finish(settings: EncodeConfig, work: WorkFolder, count: int, out_dir: Path, ids: set[str]) -> dict[str, Any]:
    """Check and publish; ``ids`` are the utterances that were asked for, without their copies."""
    rejects = [row for index in range(count) for row in read_rows(work.path / _rejects_name(index), REJECTS)]
    # Also when the check fails, the stage's folder says what was dropped and why.
    write_rejects(rejects, Path(out_dir) / "rejects.parquet")
    table = load_codes(work.path, ["id", "source", "frames", "seconds"])
    kept = pc.sum(pc.equal(table["id"], table["source"])).as_py() or 0
    check_reject_rate(kept, len({row["id"] for row in rejects} & ids), settings.max_reject_rate, STAGE, rejects)
    work.commit("rejects.parquet", lambda path: write_rejects(rejects, path))
    work.publish(out_dir, [*(_shard_name(index) for index in range(count)), "rejects.parquet", "codec.json"])
    return {
        "kept": kept,
        "rejected": count_rules(rejects),
        "copies": len(table) - kept,
        "hours": round((pc.sum(table["seconds"]).as_py() or 0.0) / 3600, 4),
        "frames": pc.sum(table["frames"]).as_py() or 0,
        "shards": count,
    }


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def _rejects_name(index: int) -> str:
    return f"rejects-{index:05d}.parquet"
