"""What can be known before a training runs: whether its data are sound, fit the settings, and fit on the disk.

Tables are judged by their footers and their small columns, so ten thousand hours of codes are not read. What only steps
can tell (does one batch get learned, how long does a step take, how much memory) is in ``vall_e.training.rehearsal``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vall_e.config import Params, TrainConfig
from vall_e.corpus.schema import CODES, read_table, shard_files
from vall_e.corpus.work import others
from vall_e.memory import memory_mb
from vall_e.text.tokenizer import Tokenizer
from vall_e.training.checkpoints import sizes
from vall_e.training.compiling import device_of, is_long, verdict
from vall_e.training.plan import describe
from vall_e.training.unfinished import STAGE, begun

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
    plan = _plan(params, root)
    said = f"{len(shards)} with {len(table):,} rows, {facts['levels']} levels of {facts['codes']} codes"
    checks = [Check("shards", "ok", said), _phones(table, tokenizer)]
    lengths = _lengths(table)
    if not len(lengths.frames):
        return [*checks, Check("lengths", "fails", "no training utterances: lower split.test_fraction")]
    checks += _check_lengths(params, lengths, facts["frame_rate"])
    checks += [check_disk(params, plan, root, work_root), _memory(params.train, plan)]
    found = verdict(params.train, params.model, plan["parameters"])
    return [*checks, Check("compile", "ok", f"{'compiled' if found.compiles else 'plain'} blocks: {found.why}")]


def rehearses(params: Params, root: Path, work_root: Path) -> bool:
    """Whether ``train`` begins with steps on one batch: by auto where it is long, begins anew, and each process has the
    whole model. Arguments are those of ``inspect``."""
    train = params.train
    if train.preflight.overfit_steps != "auto":
        return train.preflight.overfit_steps > 0
    if train.shares_weights or not is_long(train, _plan(params, root)["parameters"]):
        return False
    return begun(params, root, work_root) is None


def _plan(params: Params, root: Path) -> dict[str, Any]:
    facts = json.loads((root / "data/encode/codec.json").read_text(encoding="utf-8"))
    return describe(params, facts, len(Tokenizer.load(root / "data/phonemize/tokenizer.json")))


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
    checks.append(_check_rows(train, lengths, frame_rate))
    return checks


def _check_rows(train: TrainConfig, lengths: Lengths, frame_rate: float) -> Check:
    """The longest row of the phase that has the longest, against the size of a batch."""
    positions, joined = np.zeros(0, np.int64), 0
    for phase in train.phases:
        rows, longest = _rows(phase.train, lengths, frame_rate)
        if max(longest, rows.max(initial=0)) > max(joined, positions.max(initial=0)):
            positions, joined = rows, longest
    told = f"the longest row has {positions.max(initial=0):,} positions"
    if joined > positions.max(initial=0):
        told = f"rows of joined clips have up to {joined:,} positions"
    told += f", train.batch_frames are {train.batch_frames:,}"
    big = positions > train.batch_frames
    if big.any():
        told += f"; {big.sum():,} rows ({big.mean():.1%}) make batches larger than that: more memory than planned"
    elif joined > train.batch_frames:
        told += "; those make batches larger than that: more memory than planned (train.join.max_seconds limits them)"
    return Check("rows", "mind" if max(joined, positions.max(initial=0)) > train.batch_frames else "ok", told)


def _rows(train: TrainConfig, lengths: Lengths, frame_rate: float) -> tuple[np.ndarray, int]:
    """Positions of the rows of single utterances, int64 [n], those that are left out not among them; and what a row of
    joined clips has at most, 0 where none are joined."""
    limit = int(train.max_response_seconds * frame_rate)
    fits = (lengths.frames <= limit) & (lengths.frames >= train.min_response_seconds * frame_rate)
    frames, phones, join = lengths.frames[fits], lengths.phones[fits], train.join
    beside = round(train.prompt_seconds[1] * frame_rate) + 6
    if join is None or not len(frames):
        return frames + phones + beside, 0
    gaps = (join.max_clips - 1) * int(np.ceil(join.gap_seconds[1] * frame_rate))
    response = join.max_clips * int(frames.max()) + gaps
    if join.max_seconds is not None:
        response = min(response, max(int(join.max_seconds * frame_rate) + gaps, int(frames.max())))
    response = min(response, limit)
    densest = float((phones / np.maximum(frames, 1)).max())
    text = min(join.max_clips * int(phones.max()), round(densest * response)) + join.max_clips - 1
    return frames + phones + beside, response + text + beside


def check_disk(params: Params, plan: dict[str, Any], root: Path, work_root: Path) -> Check:
    """Room for three checkpoints (the last two stay until the new one is whole) and two voices (old and new); what the
    run has of it already counts."""
    megabytes = plan["megabytes"]
    checkpoint = megabytes["weights"] + megabytes["average"] + megabytes["weights"] * 2  # and two moments at most
    held, folder = 0.0, begun(params, root, work_root)
    if folder is not None:
        checkpoint, held = (size / 2**20 for size in sizes(folder))
    codec = sum(file.stat().st_size for file in (root / "models/codec").rglob("*") if file.is_file()) / 2**20
    needed = 3 * checkpoint + 2 * (megabytes["weights"] + codec) - held
    places = {path: shutil.disk_usage(_there(path)).free / 2**20 for path in (work_root, root / "models")}
    least = min(places, key=places.__getitem__)
    said = f"needs {needed:,.0f} MB (a checkpoint {checkpoint:,.0f} MB), {places[least]:,.0f} MB are free"
    if held:
        said += f"; {folder} has {held:,.0f} MB already"
    if places[least] < needed:
        stale = [path for path in others(STAGE, "", work_root) if path != folder]
        remedy = [f"remove {_some([str(path) for path in stale])} (of other settings)"] * bool(stale)
        return Check(
            "disk", "fails", f"{said} at {least}: {' or '.join(['make room', *remedy])} or take a smaller model"
        )
    return Check("disk", "ok", said)


def _memory(train: TrainConfig, plan: dict[str, Any]) -> Check:
    device, total = device_of(train), plan["megabytes"]["total"]
    have = memory_mb(device)
    where = "the GPU" if device == "cuda" else "this machine (or container)"
    said = (
        f"about {total:,} MB by the plan for weights, optimiser, average and activations, and on top of it attention's "
        f"scores, a teacher and the loader; {where} has {have:,.0f} MB"
    )
    if total > have:
        return Check("memory", "mind", f"{said}: lower train.batch_frames and raise train.accumulate")
    return Check("memory", "ok", said)


def _there(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def _some(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return "; ".join(lines[:_NAMED]) + more
