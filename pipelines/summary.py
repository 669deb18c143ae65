"""What a run of the pipeline left, as Markdown: time and rows per stage, and the figures of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = ("model", "resynthesis", "recording")


def markdown(order: Sequence[str], states: Mapping[str, str], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The artifact of a flow run.

    Args:
        order: the stages in their order.
        states: what became of each stage; one without an entry was not reached.
        metrics: the contents of ``metrics/*.json`` by name.
    """
    lines = ["# Pipeline", "", "| stage | state | seconds | kept | rejected |", "|---|---|---:|---:|---|"]
    for stage in order:
        figures = metrics.get(stage, {}) if stage in states else {}
        rejected = figures.get("rejected")
        rejected = rejected if isinstance(rejected, Mapping) else {}
        reasons = ", ".join(f"{rule}: {count}" for rule, count in rejected.items() if count)
        cells = [
            stage,
            states.get(stage, "not reached"),
            _cell(figures.get("seconds")),
            _cell(figures.get("kept")),
            reasons,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    summary = metrics.get("summary", {}) if "report" in states else {}
    rows = [
        (name, summary[name]) for name in summary if isinstance(summary[name], Mapping) and "model" in summary[name]
    ]
    if rows:
        lines += ["", "| | " + " | ".join(_KINDS) + " |", "|---|---:|---:|---:|"]
        lines += [f"| {name} | " + " | ".join(_cell(value.get(kind)) for kind in _KINDS) + " |" for name, value in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):  # a figure with its interval
        value = value.get("value", value.get("mean"))
    return (
        ""
        if value is None
        else f"{value:,}"
        if isinstance(value, int)
        else f"{value:.3g}"
        if isinstance(value, float)
        else str(value)
    )
