"""Runs beside one another: what MLflow holds about trainings as rows, as a table, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stages.lineage import MODEL, tagged

if TYPE_CHECKING:
    from mlflow.entities import Run

MEASURES = {
    "wer": "eval.wer.model",
    "cer": "eval.cer.model",
    "similarity": "score.similarity.model",
    "dnsmos": "score.dnsmos.model",
}
_SHORT = 8  # characters of ids and commits for people
_NONE = "–"


def row_of(run: Run, aliases: Mapping[tuple[str, str], Sequence[str]]) -> dict[str, Any]:
    """What is told about a training, with the keys of ``COLUMNS``; None where nothing was measured or recorded.

    Args:
        aliases: of registered models, by name and version.

    Returns:
        Beside the columns: ``intervals`` {measure: [low, high]} and ``params``, all of the run's parameters.
    """
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    models = [name.rpartition(".")[::2] for name, _ in tagged(run, MODEL)]
    commit = tags.get("mlflow.source.git.commit")
    return {
        "run": run.info.run_id,
        "profile": tags.get("profile"),
        "started": datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
        "status": run.info.status,
        "kind": params.get("model.kind"),
        "codec": params.get("codec.name"),
        "steps": int(metrics["steps"]) if "steps" in metrics else None,
        **{measure: metrics.get(f"{name}.value") for measure, name in MEASURES.items()},
        "seconds": metrics.get("seconds"),
        "commit": commit and commit + ("+" if tags.get("git.changed") == "true" else ""),
        "model": [
            f"{name}/{version}" + "".join(f" @{alias}" for alias in sorted(aliases.get((name, version), ())))
            for name, version in models
        ],
        "intervals": {
            measure: [metrics[f"{name}.low"], metrics[f"{name}.high"]]
            for measure, name in MEASURES.items()
            if f"{name}.low" in metrics
        },
        "params": dict(params),
    }


COLUMNS = (
    "run", "profile", "started", "status", "kind", "codec", "steps", *MEASURES, "seconds", "commit", "model",
)  # fmt: skip


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Parameters that are not the same in all rows, with the value of each row; None where a run has none."""
    names = sorted({name for row in rows for name in row["params"]})
    found = {name: [row["params"].get(name) for row in rows] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def as_table(rows: Sequence[Mapping[str, Any]], differ: Mapping[str, Sequence[str | None]]) -> str:
    """Trainings in columns, below one another, what differs between them below that."""
    shown = [{name: _cell(name, row) for name in COLUMNS} for row in rows]
    used = [name for name in COLUMNS if any(cells[name] != _NONE for cells in shown)]
    lines = _aligned([used, *([cells[name] for name in used] for cells in shown)])
    if differ:
        head = ["parameter", *(row["run"][:_SHORT] for row in rows)]
        body = [[name, *(value or _NONE for value in values)] for name, values in differ.items()]
        lines += ["", *_aligned([head, *body])]
    return "\n".join(lines)


def as_csv(rows: Sequence[Mapping[str, Any]], differ: Mapping[str, Sequence[str | None]]) -> str:
    """A line a training: the columns, the ends of the intervals, and the parameters that differ."""
    ends = [f"{measure}_{end}" for measure in MEASURES for end in ("low", "high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *ends, *differ])
    for number, row in enumerate(rows):
        cells = [" ".join(row[name]) if name == "model" else row[name] for name in COLUMNS]
        cells += [value for measure in MEASURES for value in row["intervals"].get(measure, (None, None))]
        writer.writerow([*cells, *(values[number] for values in differ.values())])
    return out.getvalue()


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if value is None or value == []:
        return _NONE
    if name == "run":
        return value[:_SHORT]
    if name == "commit":
        return value[:_SHORT] + ("+" if value.endswith("+") else "")
    if name == "model":
        return ", ".join(value)
    if name in row["intervals"]:
        low, high = row["intervals"][name]
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"{value:,.1f}" if name == "seconds" else f"{value:,}" if isinstance(value, int) else f"{value}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
