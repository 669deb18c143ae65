"""What can be known before a training runs: whether its data are sound, fit the settings, and fit on the disk.

Tables are judged by their footers and their small columns, so ten thousand hours of codes are not read. What only steps
can tell (does one batch get learned, how long does a step take, how much memory) is in ``vall_e.training.rehearsal``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vall_e.config import Params
from vall_e.corpus.schema import CODES, read_table, shard_files
from vall_e.text.tokenizer import Tokenizer
from vall_e.training.compiling import verdict
from vall_e.training.plan import describe

State = Literal["ok", "mind", "fails"]
_NAMED = 3  # examples in a line
_LEAF = "codes.list.element"


class PreflightError(ValueError):
    """The run would fail; the message says why."""


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        state: ok; mind: it would run, and somebody should know; fails: it would not.
        detail: the figures and, where it is not ok, what to do.
    """

    name: str
    state: State
    detail: str


@dataclass(frozen=True)
class Lengths:
    """Of the training split.

    Attributes:
        frames, phones: int64 [N], of each utterance.
    """

    frames: np.ndarray
    phones: np.ndarray


def inspect(params: Params, root: Path, work_root: Path) -> list[Check]:
    """The checks that cost seconds: every shard, phones, lengths, disk, the plan's memory, and the compiler.

    Args:
        root: the project's folder, with what the stages before training left.
        work_root: where checkpoints will live.

    Raises:
        FileNotFoundError: a stage before has not run.
    """
    folder = root / "data/encode"
    tokenizer = Tokenizer.load(root / "data/phonemize/tokenizer.json")
    shards = shard_files(folder)
    facts = json.loads((folder / "codec.json").read_text(encoding="utf-8"))
    wrong = [fault for path in shards for fault in _shard_faults(path, facts["levels"], facts["codes"])]
    if wrong:
        return [Check("shards", "fails", f"{_some(wrong)}: run the encode stage again")]
    columns = ("split", "text", "phones", "frames")
    table = pa.concat_tables([read_table(path, CODES, columns) for path in shards])
    plan = describe(params, facts, len(tokenizer))
    said = f"{len(shards)} with {len(table):,} rows, {facts['levels']} levels of {facts['codes']} codes"
    checks = [Check("shards", "ok", said), _phones(table, tokenizer)]
    lengths = _lengths(table)
    if not len(lengths.frames):
        return [*checks, Check("lengths", "fails", "no training utterances: lower split.test_fraction")]
    checks += _check_lengths(params, lengths, facts["frame_rate"])
    checks += [check_disk(params, plan, root, work_root), _memory(plan)]
    found = verdict(params.train, params.model, plan["parameters"])
    return [*checks, Check("compile", "ok", f"{'compiled' if found.compiles else 'plain'} blocks: {found.why}")]


def failed(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.state == "fails"]


def demand(checks: Sequence[Check]) -> None:
    """Raises PreflightError where a check says that the run would fail."""
    if wrong := failed(checks):
        raise PreflightError("; ".join(f"{check.name}: {check.detail}" for check in wrong))


def table(checks: Sequence[Check]) -> str:
    """The checks as lines for a person."""
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{check.state:5}  {check.name:{width}}  {check.detail}" for check in checks)


def as_json(checks: Sequence[Check], figures: dict[str, Any]) -> dict[str, Any]:
    """``runs`` (whether the training would), the ``checks``, and ``figures`` of a rehearsal."""
    return {"runs": not failed(checks), "checks": [asdict(check) for check in checks], "figures": figures}


def _shard_faults(path: Path, levels: int, codes: int) -> list[str]:
    """What is wrong with a shard, by its footer and its columns of lengths."""
    try:
        rows = read_table(path, CODES, ("levels", "frames"))
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        return [f"{path}: {error}"]
    found = sorted(set(rows["levels"].unique().to_pylist()) - {levels})
    if found:
        return [f"{path} has rows of {', '.join(map(str, found))} levels, and codec.json says {levels}"]
    low, high, count = _code_range(file)
    wanted = pc.sum(pc.multiply(rows["frames"].cast(pa.int64()), levels)).as_py() or 0
    if count != wanted:
        return [f"{path} holds {count:,} codes, and its rows say {wanted:,}"]
    if count and not 0 <= low <= high < codes:
        return [f"{path} holds codes from {low} to {high}, and the codec has 0 to {codes - 1}"]
    return []


def _code_range(file: pq.ParquetFile) -> tuple[int, int, int]:
    """Lowest and highest code and their number, out of the footer where it says so."""
    meta = file.metadata
    groups = [_leaf(meta.row_group(i)) for i in range(meta.num_row_groups)]
    if all(group.is_stats_set and group.statistics.has_min_max for group in groups):
        ends = [(group.statistics.min, group.statistics.max) for group in groups]
        count = sum(group.statistics.num_values for group in groups)
        return min((low for low, _ in ends), default=0), max((high for _, high in ends), default=0), count
    values = [pc.list_flatten(batch["codes"]) for batch in file.iter_batches(columns=["codes"])]
    ends = [pc.min_max(part).as_py() for part in values if len(part)]
    low, high = min((e["min"] for e in ends), default=0), max((e["max"] for e in ends), default=0)
    return low, high, sum(map(len, values))


def _leaf(group: pq.RowGroupMetaData) -> pq.ColumnChunkMetaData:
    columns = map(group.column, range(group.num_columns))
    return next(column for column in columns if column.path_in_schema == _LEAF)


def _phones(table: pa.Table, tokenizer: Tokenizer) -> Check:
    occurring = pc.unique(pc.list_flatten(table["phones"]).combine_chunks())
    if not tokenizer.validate([("", occurring.to_pylist())]):
        return Check("phones", "ok", f"all known, {len(tokenizer.phones)} kinds")
    pairs = ((row["text"], row["phones"]) for batch in table.to_batches() for row in batch.to_pylist())
    unknown = tokenizer.validate(pairs)
    said = [f"{u.phone!r} {u.count:,} times ({u.example[:40]})" for u in unknown]
    return Check("phones", "fails", f"the tokenizer does not know {_some(said)}: run the phonemize stage again")


def _lengths(table: pa.Table) -> Lengths:
    train = table.filter(pc.equal(table["split"].cast(pa.string()), "train"))
    phones = pc.list_value_length(train["phones"])
    return Lengths(train["frames"].to_numpy().astype(np.int64), phones.to_numpy().astype(np.int64))


def _check_lengths(params: Params, lengths: Lengths, frame_rate: float) -> list[Check]:
    train, seconds = params.train, lengths.frames / frame_rate
    spread = " · ".join(f"{q} % {np.percentile(seconds, q):.1f} s" for q in (50, 95, 100))
    said = f"{len(seconds):,} utterances, {seconds.sum() / 3600:.2f} h; {spread}"
    limit, long = train.max_response_seconds, seconds > train.max_response_seconds
    checks = [Check("lengths", "ok", said)]
    if long.any():
        told = f"{said}; {long.sum():,} ({long.mean():.1%}) above train.max_response_seconds {limit:g} are left out"
        remedy = f"to train on them raise it to {np.ceil(seconds.max()):g}, or lower transcribe.max_seconds"
        checks = [Check("lengths", "fails" if long.all() else "mind", f"{told}: {remedy}")]
    rows = lengths.frames + lengths.phones + round(train.prompt_seconds[1] * frame_rate) + 6
    big = rows > train.batch_frames
    told = f"the longest row has {rows.max():,} positions, train.batch_frames are {train.batch_frames:,}"
    if big.any():
        told += f"; {big.sum():,} rows ({big.mean():.1%}) make batches larger than that: more memory than planned"
    checks.append(Check("rows", "mind" if big.any() else "ok", told))
    return checks


def check_disk(params: Params, plan: dict[str, Any], root: Path, work_root: Path) -> Check:
    """Room for two checkpoints (the last stays until the new one is whole) and two voices (old and new)."""
    sizes = plan["megabytes"]
    checkpoint = sizes["weights"] + sizes["average"] + sizes["weights"] * 2  # and two moments at most
    codec = sum(file.stat().st_size for file in (root / "models/codec").rglob("*") if file.is_file()) / 2**20
    needed = 2 * checkpoint + 2 * (sizes["weights"] + codec)
    places = {path: shutil.disk_usage(_there(path)).free / 2**20 for path in (work_root, root / "models")}
    least = min(places, key=places.__getitem__)
    said = f"needs {needed:,.0f} MB (a checkpoint {checkpoint:,.0f} MB), {places[least]:,.0f} MB are free"
    if places[least] < needed:
        return Check("disk", "fails", f"{said} at {least}: make room or take a smaller model")
    return Check("disk", "ok", said)


def _memory(plan: dict[str, Any]) -> Check:
    have, total = memory_mb(), plan["megabytes"]["total"]
    said = f"about {total:,} MB by the plan, at most; this machine has {have:,.0f} MB"
    if total > have:
        return Check("memory", "mind", f"{said}: lower train.batch_frames and raise train.accumulate")
    return Check("memory", "ok", said)


def memory_mb() -> float:
    """Of the GPU where there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


def _there(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def _some(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return "; ".join(lines[:_NAMED]) + more
