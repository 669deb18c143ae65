"""What each rule cost, in utterances and minutes: a table for DVC's plots and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vall_e.corpus.work import write_atomic, write_text


@dataclass(frozen=True)
class Step:
    """A rule, what it dropped, and what was left behind it."""

    rule: str
    rejected: int
    minutes: float
    left: int
    minutes_left: float


def steps(seconds: dict[str, float], dropped: Sequence[tuple[str, str]], rules: Sequence[str]) -> list[Step]:
    """The waterfall: first all utterances, then a step a rule.

    Args:
        seconds: id → duration, of all utterances.
        dropped: (id, rule).
        rules: in the order in which they are asked; those that dropped nothing are left out.
    """
    left, minutes_left = len(seconds), sum(seconds.values()) / 60
    out = [Step("all", 0, 0.0, left, round(minutes_left, 3))]
    for rule in rules:
        ids = [name for name, why in dropped if why == rule]
        minutes = sum(seconds[name] for name in ids) / 60
        left, minutes_left = left - len(ids), minutes_left - minutes
        if ids:
            out.append(Step(rule, len(ids), round(minutes, 3), left, round(minutes_left, 3)))
    return out


def write_csv(found: Sequence[Step], path: Path) -> Path:
    """Columns: rule, rejected, minutes, left, minutes_left."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["rule", "rejected", "minutes", "left", "minutes_left"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(step) for step in found)
    return write_text(path, text.getvalue())


def draw(found: Sequence[Step], path: Path) -> Path:
    """A PNG, utterances and minutes side by side: what is left behind each rule in grey, what it dropped in red."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 0.9 + 0.34 * len(found)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    units = (("utterances", "rejected", "left", "{:,.0f}"), ("minutes", "minutes", "minutes_left", "{:,.1f}"))
    for axes, (unit, cost, left, said) in zip(figure.subplots(1, 2, sharey=True), units, strict=True):
        kept = [getattr(step, left) for step in found]
        lost = [getattr(step, cost) for step in found]
        axes.barh(range(len(found)), kept, color="#b6c0cd")
        axes.barh(range(len(found)), lost, left=kept, color="#d1495b")
        for place, (keep, lose) in enumerate(zip(kept, lost, strict=True)):
            label = said.format(keep) + (f"  (-{said.format(lose)})" if place else "")
            axes.text(keep + lose, place, f" {label}", va="center", fontsize=8)
        axes.set_xlim(0, 1.35 * max(kept[0], 1e-9))
        axes.set_title(unit, fontsize=10, loc="left")
        axes.set_yticks(range(len(found)), [step.rule.replace("_", " ") for step in found], fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    return write_atomic(path, lambda temporary: canvas.print_png(str(temporary), metadata={"Software": None}))
