"""What utterances are compared by: a vector each, made over shards and kept in a memory-mapped file.

``mfcc`` and ``speaker`` listen to the recordings, ``codes`` reads the encode stage's shards. Finished shards stay in
the work folder, so that a killed run goes on.

Dimensions: U utterances, D width of a feature, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vall_e.audio import AudioError, load
from vall_e.corpus.clips import batches
from vall_e.corpus.executor import POISONED, Advance, Shard, run_shards
from vall_e.corpus.quality import Row, may_be_read, reject, write_rejects
from vall_e.corpus.schema import CODES, REJECTS, read_rows, read_table, shard_files
from vall_e.corpus.work import WorkFolder, write_atomic
from vall_e.models.similarity import utterance_vectors
from vall_e.preparation import ExecutorConfig

RATE = 16_000
SHARD = 1000
_BATCH = 64  # recordings in memory
_WINDOW = 1024  # rows of codes in memory, sorted by length
_FRAMES = 1 << 14  # of which vectors are in memory, padding included
_ROWS = 1 << 16  # rows scaled at once
WIDTHS = {"mfcc": 38, "speaker": 256}  # D of what is heard


def heard(
    kind: str, rows: pa.Table, work: WorkFolder, executor: ExecutorConfig, advance: Advance
) -> tuple[np.ndarray, list[Row]]:
    """Features by ear.

    Args:
        kind: mfcc (D = 38, each dimension scaled over the corpus) or speaker (D = 256).
        rows: id, path, start and end of what to listen to.

    Returns:
        memory-mapped float32 [U, D] of the utterances that were heard, and rejects (schema REJECTS) of the others: they
        killed their worker, or their recording could not be read.
    """
    spans = rows.select(["id", "path", "start", "end"])
    numbers = range(-(-len(spans) // SHARD))
    shards = (Shard(_name(n), spans.slice(n * SHARD, SHARD).to_pylist(), number=n) for n in numbers)
    rejects = _made(partial(_encoder, kind), partial(_listen, kind, work.path), shards, work, executor, advance)
    table = _assembled(work, len(spans) - len(rejects), _stretches(np.load(work.path / _name(n)) for n in numbers))
    return table if kind == "speaker" else _scaled(table), rejects


def read_codes(
    folder: Path, sources: pa.Array, tables: Tensor, work: WorkFolder, executor: ExecutorConfig, advance: Advance
) -> tuple[np.ndarray, list[Row]]:
    """Vectors of the codes of every source (``vall_e.models.similarity``), each dimension scaled over the corpus.

    Args:
        folder: the encode stage's.
        sources: string [U], ordered.
        tables: float [L, n, d], what codes stand for.

    Returns:
        memory-mapped float32 [U, 2d] of the sources whose codes could be read, and rejects (schema REJECTS) of the
        others: they killed their worker, or hold what ``tables`` do not know.

    Raises:
        ValueError: ``tables`` know the codes of none.
    """
    files = shard_files(folder)
    shards = (Shard(_name(n), _first_rows(path), number=n) for n, path in enumerate(files))
    rejects = _made(_nothing, partial(_read, files, tables, work.path), shards, work, executor, advance)
    if rejects and len(rejects) == len(sources):
        raise ValueError(
            f"no codes of {folder} can be compared ({rejects[0]['rule']}: {rejects[0]['value']}, allowed: "
            f"{rejects[0]['threshold']}): run the encode stage again with the codec of models/codec"
        )
    lost = {row["id"] for row in rejects}
    row_of = {name: row for row, name in enumerate(name for name in sources.to_pylist() if name not in lost)}
    parts = (
        ([row_of[row["id"]] for row in _first_rows(path) if row["id"] in row_of], np.load(work.path / _name(n)))
        for n, path in enumerate(files)
    )
    return _scaled(_assembled(work, len(row_of), parts)), rejects


def _made(
    setup: Callable[[], Any],
    make: Callable[[Any, Shard, Advance], None],
    shards: Iterable[Shard],
    work: WorkFolder,
    executor: ExecutorConfig,
    advance: Advance,
) -> list[Row]:
    """Have all shards made but those that are finished, and return the rejects of all."""
    names: list[str] = []

    def pending() -> Iterator[Shard]:
        for shard in shards:
            names.append(_rejects(shard.number))
            if work.done(shard.name) and not _may_be_read(work.path, shard):
                advance(len(shard.rows))
            else:
                yield shard

    run_shards(setup, make, pending(), executor, advance, work.path)
    return [row for name in names for row in read_rows(work.path / name, REJECTS)]


def _may_be_read(folder: Path, shard: Shard) -> bool:
    """A recording of a finished shard could not be read, and may be read now."""
    paths = {row["id"]: row.get("path") for row in shard.rows}
    found = read_rows(folder / _rejects(shard.number), REJECTS, ["id", "rule"])
    return may_be_read((row["rule"], path) for row in found if (path := paths[row["id"]]))


def mfcc_statistics(wav: np.ndarray) -> np.ndarray:
    """Mean and deviation over time of MFCCs 1 to 19 of ``wav`` float [N] at 16 kHz → float32 [38].

    Coefficient 0 is the loudness, which says nothing about likeness.
    """
    wav = np.pad(wav, (0, max(0, 800 - len(wav))))
    coefficients = _mfcc()(torch.from_numpy(wav))[1:]
    return torch.cat([coefficients.mean(-1), coefficients.std(-1)]).numpy()


_transforms: list[torch.nn.Module] = []


def _mfcc() -> torch.nn.Module:
    if not _transforms:
        from torchaudio.transforms import MFCC

        window = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 40}
        _transforms.append(MFCC(RATE, n_mfcc=20, melkwargs=window))
    return _transforms[0]


def _name(number: int) -> str:
    return f"features-{number:05d}.npy"


def _rejects(number: int) -> str:
    return f"rejects-{number:05d}.parquet"


def _nothing() -> None:
    """The tables come with the work."""


def _encoder(kind: str) -> Any:
    """None for MFCC statistics."""
    if kind == "mfcc":
        return None
    from vall_e.evaluation.speaker import SpeakerEncoder

    return SpeakerEncoder()


def _listen(kind: str, folder: Path, encoder: Any, job: Shard, advance: Advance) -> None:
    parts, rejects = [np.zeros((0, WIDTHS[kind]), dtype=np.float32)], []
    for batch in _batches(job.rows, _BATCH):
        wavs = []
        for row in batch:
            try:
                wavs.append(load(row["path"], RATE, start=row["start"], end=row["end"])[0])
            except AudioError as error:
                rejects.append(reject(row["id"], "similar", error.rule, f"{error.path}: {error.reason}", error.remedy))
        if encoder is None:
            parts += [mfcc_statistics(wav)[None] for wav in wavs]
        elif wavs:
            parts.append(encoder.embed([(wav, RATE) for wav in wavs]))
        advance(len(batch))
    _keep(folder, job, np.concatenate(parts), rejects)


def _keep(folder: Path, job: Shard, vectors: np.ndarray, rejects: Iterable[Row] = ()) -> None:
    """Finish a shard that is no trial: ``vectors`` of the rows that are neither rejects nor poisoned."""
    if job.trial:
        return
    dead = [reject(row["id"], "similar", POISONED, why) for row, why in job.poisoned]
    write_rejects([*rejects, *dead], folder / _rejects(job.number))
    # The features are what says that the shard is done.
    write_atomic(folder / job.name, lambda path: np.save(path, vectors))


def _read(files: Sequence[Path], tables: Tensor, folder: Path, _: None, job: Shard, advance: Advance) -> None:
    rows, rejects = _known_codes(files[job.number], job.rows, tables)
    vectors = np.zeros((len(rows), 2 * tables.shape[2]), dtype=np.float32)
    for start in range(0, len(rows), _WINDOW):
        window = rows[start : start + _WINDOW]
        for batch in batches([row["frames"] for row in window], _FRAMES, mixed=True):
            chosen = [window[index] for index in batch]
            lengths = torch.tensor([row["frames"] for row in chosen])
            codes = np.zeros((len(chosen), len(tables), int(lengths.max())), dtype=np.int64)
            for padded, row in zip(codes, chosen, strict=True):
                padded[:, : row["frames"]] = row["codes"]
            found = utterance_vectors(torch.from_numpy(codes), lengths, tables)
            vectors[[start + index for index in batch]] = found.numpy()
    _keep(folder, job, vectors, rejects)
    advance(len(job.rows))


def _first_rows(path: Path) -> list[Row]:
    """``id`` of each source of an encode shard and its ``place``, the row of itself: its copies stand behind it."""
    places: dict[str, int] = {}
    for place, source in enumerate(read_table(path, CODES, ["source"])["source"].to_pylist()):
        places.setdefault(source, place)
    return [{"id": source, "place": place} for source, place in places.items()]


def _known_codes(path: Path, rows: Sequence[Row], tables: Tensor) -> tuple[list[Row], list[Row]]:
    """``rows`` of an encode shard with their ``frames`` and codes int16 [L, T], and rejects of those whose codes the
    ``tables`` [L, n, d] do not know."""
    found, rejects = [], []
    places = pa.array([row["place"] for row in rows], pa.int64())
    table = read_table(path, CODES, ["levels", "frames", "codes"]).take(places)
    columns = (table["levels"].to_pylist(), table["frames"].to_pylist(), table["codes"])
    for row, levels, frames, listed in zip(rows, *columns, strict=True):
        codes = listed.values.to_numpy(zero_copy_only=False)
        shape, least, most = (levels, frames), codes.min(initial=0), codes.max(initial=0)
        if levels != len(tables) or codes.size != levels * frames or least < 0 or most >= tables.shape[1]:
            said = f"{codes.size} codes {least} to {most}, {levels} levels of {frames} frames"
            allowed = f"codes 0 to {tables.shape[1] - 1} on {len(tables)} levels"
            rejects.append(reject(row["id"], "similar", "codes", said, allowed))
        else:
            found.append(row | {"frames": frames, "codes": codes.reshape(shape)})
    return found, rejects


def _stretches(parts: Iterable[np.ndarray]) -> Iterator[tuple[slice, np.ndarray]]:
    """Parts that follow one another, with their places."""
    at = 0
    for part in parts:
        yield slice(at, at + len(part)), part
        at += len(part)


def _assembled(work: WorkFolder, count: int, parts: Iterable[tuple[Any, np.ndarray]]) -> np.ndarray:
    """One file of all shards, in which ``parts`` say the rows of each."""
    table = None
    for rows, part in parts:
        if table is None:
            shape = (count, part.shape[1])
            table = np.lib.format.open_memmap(work.path / "table.npy", mode="w+", dtype=np.float32, shape=shape)
        table[rows] = part
    return np.zeros((0, 1), dtype=np.float32) if table is None else table


def _scaled(table: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and deviation 1, in place."""
    chunks = [slice(at, at + _ROWS) for at in range(0, len(table), _ROWS)]
    count = max(1, len(table))
    mean = sum(table[part].sum(0, dtype=np.float64) for part in chunks) / count
    spread = np.sqrt(sum(np.square(table[part] - mean).sum(0) for part in chunks) / count)
    for part in chunks:
        table[part] = (table[part] - mean) / np.where(spread > 1e-6, spread, 1.0)
    return table


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
