"""The report's picture of how things are said: pitch and pace of every test item beside its recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vall_e.evaluation.plots import LABELS, draw

_SHOWN = ("model", "resynthesis")
_BINS = 24


def draw_prosody(items: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """Mean pitch over the recording's (left), and how durations compare (right).

    Args:
        items: from ``tables.join_items``; items without a recording, or not measured, are left out.
        path: without suffix.

    Returns:
        Names of the files, light and dark; none where there is nothing to draw.
    """
    pitch = {kind: _pairs(items, kind, "f0_mean") for kind in _SHOWN}
    ratios = {kind: [r for r in (_value(i, kind, "duration_ratio") for i in items) if r is not None] for kind in _SHOWN}
    wanted = [name for name, found in (("pitch", pitch["model"]), ("pace", ratios["model"])) if found]
    if not wanted:
        return []

    def paint(axes: list[Any], theme: Mapping[str, str]) -> None:
        for name, axis in zip(wanted, axes, strict=True):
            (_paint_pitch if name == "pitch" else _paint_pace)(axis, pitch if name == "pitch" else ratios, theme)
            axis.tick_params(length=0)
            axis.legend(fontsize=9.5)

    return draw(path, (10.4 if len(wanted) == 2 else 5.2, 3.7), paint, (1, len(wanted)))


def _value(item: Mapping[str, Any], kind: str, column: str) -> float | None:
    return item["kinds"].get(kind, {}).get(column)


def _pairs(items: Sequence[Mapping[str, Any]], kind: str, column: str) -> list[tuple[float, float]]:
    pairs = [(_value(item, "recording", column), _value(item, kind, column)) for item in items]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _paint_pitch(axis: Any, pitch: Mapping[str, Sequence[tuple[float, float]]], theme: Mapping[str, str]) -> None:
    every = np.array([value for pairs in pitch.values() for pair in pairs for value in pair])
    low, high = float(every.min()) * 0.92, float(every.max()) * 1.08
    axis.plot([low, high], [low, high], color=theme["soft"], lw=1, ls="--", zorder=1)
    for kind in reversed(_SHOWN):
        if pitch[kind]:
            x, y = zip(*pitch[kind], strict=True)
            axis.scatter(x, y, s=24, color=theme[kind], label=LABELS[kind], alpha=0.8, lw=0, zorder=3)
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ticks = np.unique(np.geomspace(low, high, 7)[1:-1].round()).astype(int)
    for side in (axis.xaxis, axis.yaxis):
        side.set_ticks(ticks, [str(t) for t in ticks])
        side.set_ticks([], minor=True)
    axis.set_title("Mean pitch, Hz")
    axis.set_xlabel("recording")
    axis.grid()


def _paint_pace(axis: Any, ratios: Mapping[str, Sequence[float]], theme: Mapping[str, str]) -> None:
    every = np.log2(np.clip([r for found in ratios.values() for r in found], 0.25, 4.0))
    edge = max(0.25, float(np.abs(every).max()) * 1.05)
    bins = 2.0 ** np.linspace(-edge, edge, _BINS + 1)
    axis.axvline(1.0, color=theme["soft"], lw=1, ls="--", zorder=1)
    for kind in reversed(_SHOWN):
        if ratios[kind]:
            values = np.clip(ratios[kind], bins[0], bins[-1])
            axis.hist(values, bins, color=theme[kind], label=LABELS[kind], alpha=0.75, zorder=3)
    axis.set_xscale("log")
    ticks = [t for t in (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0) if bins[0] <= t <= bins[-1]]
    axis.xaxis.set_ticks(ticks, [f"{t:g}" for t in ticks])
    axis.xaxis.set_ticks([], minor=True)
    axis.set_title("Duration over the recording’s")
    axis.set_xlabel("below 1: faster than the recording")
    axis.set_ylabel("utterances")
    axis.grid(axis="y")
