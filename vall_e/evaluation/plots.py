"""The report's pictures: SVG by matplotlib, each in a light and a dark version, the same bytes for the same figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import itertools

import matplotlib.pyplot as plt
import numpy as np

LABELS = {"model": "Model", "resynthesis": "Codec copy", "recording": "Recording"}
THEMES = {
    "light": {
        "ink": "#1c2430",
        "soft": "#5b6778",
        "grid": "#e3e8ef",
        "model": "#2f6bdb",
        "resynthesis": "#e0952b",
        "recording": "#8794a6",
        "map": "Blues",
        "gap": "#ffffff",
    },
    "dark": {
        "ink": "#e8edf4",
        "soft": "#9aa7b8",
        "grid": "#2b3442",
        "model": "#71a7ff",
        "resynthesis": "#f0b355",
        "recording": "#8b98aa",
        "map": "cividis",
        "gap": "#171d26",
    },
}
_LARGEST_MATRIX = 24
SMALL_MATRIX = 10  # speakers that fit half the page's width

Interval = Mapping[str, float]


def draw(path: Path, size: tuple[float, float], paint: Any, grid: tuple[int, int] = (1, 1)) -> list[str]:
    """Calls ``paint(axes, theme)`` for both themes and writes ``NAME-light.svg`` and ``NAME-dark.svg``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for name, theme in THEMES.items():
        settings = {
            "svg.hashsalt": path.name,
            "font.size": 10.5,
            "font.family": "DejaVu Sans",
            "text.color": theme["ink"],
            "axes.labelcolor": theme["soft"],
            "xtick.color": theme["soft"],
            "ytick.color": theme["soft"],
            "axes.edgecolor": theme["grid"],
            "grid.color": theme["grid"],
            "axes.titlesize": 11.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlecolor": theme["ink"],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "axes.axisbelow": True,
        }
        with plt.rc_context(settings):
            figure, axes = plt.subplots(*grid, figsize=size, squeeze=False, layout="constrained")
            try:
                paint(list(axes.flat), theme)
                target = path.with_name(f"{path.name}-{name}.svg")
                figure.savefig(target, transparent=True, metadata={"Date": None, "Creator": None})
            finally:
                plt.close(figure)
        written.append(target.name)
    return written


def _bars(
    axis: Any, groups: Mapping[str, Mapping[str, Interval | None]], theme: Mapping[str, str], scale: float, digits: int
) -> None:
    """Grouped bars with whiskers; a missing figure leaves its place empty."""
    width = 0.26
    for offset, kind in enumerate(LABELS):
        places = [i + (offset - 1) * width for i, name in enumerate(groups) if groups[name].get(kind)]
        found = [groups[name][kind] for name in groups if groups[name].get(kind)]
        values = np.array([f["value"] for f in found]) * scale
        spread = _spread(found) * scale
        axis.bar(
            places,
            values,
            width * 0.86,
            color=theme[kind],
            label=LABELS[kind],
            yerr=spread,
            error_kw={"ecolor": theme["ink"], "elinewidth": 1.1, "capsize": 3, "alpha": 0.75},
        )
        for place, value, high in zip(places, values, values + spread[1] if found else [], strict=True):
            axis.annotate(
                f"{value:.{digits}f}",
                (place, np.fmax(value, high)),
                (0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=9.5,
                color=theme["ink"],
            )
    axis.set_xticks(range(len(groups)), list(groups))
    axis.tick_params(axis="x", length=0, labelsize=10.5, labelcolor=theme["ink"])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y")
    axis.spines["left"].set_visible(False)
    axis.margins(x=0.04, y=0.16)


def _spread(found: Sequence[Interval]) -> np.ndarray:
    """Below and above each figure, [2, figures]; NaN, which is not drawn, where there is no interval."""
    ends = [[abs(f["value"] - f["low"]), abs(f["high"] - f["value"])] if f["low"] is not None else [np.nan] * 2
            for f in found]  # fmt: skip
    return np.array(ends).reshape(-1, 2).T


def headline(metrics: Mapping[str, Mapping[str, Interval | None]], path: Path) -> list[str]:
    """Error rates in per cent (left), similarity and DNSMOS (right), with intervals.

    Args:
        metrics: wer, cer, per, similarity, dnsmos → kind → {value, low, high} or None.
        path: without suffix.
    """
    quality = bool(any((metrics.get("dnsmos") or {}).values()))

    def paint(axes: list[Any], theme: Mapping[str, str]) -> None:
        _bars(axes[0], {name.upper(): metrics[name] for name in ("wer", "cer", "per")}, theme, 100.0, 1)
        axes[0].set_title("Errors, % (lower is better)")
        axes[0].set_ylim(bottom=0)
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10)
        _bars(axes[1], {"to the prompt": metrics["similarity"]}, theme, 1.0, 2)
        axes[1].set_title("Voice similarity")
        axes[1].set_ylim(0, 1.05)
        if quality:
            _bars(axes[2], {"DNSMOS": metrics["dnsmos"]}, theme, 1.0, 2)
            axes[2].set_title("Sound quality, 1-5")
            axes[2].set_ylim(1, 5)

    def sized(axes: list[Any], theme: Mapping[str, str]) -> None:
        axes[0].get_gridspec().set_width_ratios([2.3, 1, 1][: len(axes)])
        paint(axes, theme)

    return draw(path, (10.4, 3.7), sized, (1, 3 if quality else 2))


def by_length(rows: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """WER with intervals over the length of the text; ``rows``: {label, count, kind → Interval or None}."""

    def paint(axes: list[Any], theme: Mapping[str, str]) -> None:
        axis = axes[0]
        for offset, kind in enumerate(LABELS):
            points = [(i, row[kind]) for i, row in enumerate(rows) if row.get(kind)]
            x = np.array([i for i, _ in points]) + (offset - 1) * 0.09
            value = np.array([f["value"] for _, f in points]) * 100
            spread = _spread([f for _, f in points]) * 100
            axis.errorbar(
                x,
                value,
                yerr=spread,
                fmt="o-",
                color=theme[kind],
                label=LABELS[kind],
                lw=1.6,
                ms=5.5,
                capsize=2.5,
                elinewidth=1,
                zorder=4 - offset,
            )
        axis.set_xticks(range(len(rows)), [f"{row['label']}\nn = {row['count']}" for row in rows])
        axis.set_xlabel("words in the text")
        axis.set_title("Word error rate by length, %")
        axis.set_ylim(bottom=0)
        axis.grid(axis="y")
        axis.tick_params(length=0)
        axis.spines["left"].set_visible(False)
        axis.margins(x=0.08)
        axis.legend(fontsize=9.5)

    return draw(path, (5.2, 3.7), paint)


def heatmap(matrix: Mapping[str, Any], path: Path) -> list[str]:
    """Mean similarity of the model's outputs, prompt's speaker (rows) by centroid (columns); the first 24 of each."""
    rows, columns = matrix["speakers"][:_LARGEST_MATRIX], matrix["centroids"][:_LARGEST_MATRIX]
    values = np.asarray(matrix["values"], dtype=float)[:_LARGEST_MATRIX, :_LARGEST_MATRIX]

    def paint(axes: list[Any], theme: Mapping[str, str]) -> None:
        axis = axes[0]
        low, high = float(values.min()), max(float(values.max()), float(values.min()) + 1e-3)
        colours = plt.get_cmap(theme["map"])
        image = axis.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
        axis.set_xticks(
            range(len(columns)), [_short(c) for c in columns], rotation=40, ha="right", rotation_mode="anchor"
        )
        axis.set_yticks(range(len(rows)), [_short(r) for r in rows])
        axis.set_xlabel("voice of (mean of held-out recordings)")
        axis.set_ylabel("asked to speak as")
        axis.tick_params(length=0)
        for side in axis.spines.values():
            side.set_visible(False)
        axis.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
        axis.grid(which="minor", color=theme["gap"], linewidth=2)
        axis.tick_params(which="minor", length=0)
        if len(columns) <= 12 and len(rows) <= 16:
            for y in range(len(rows)):
                for x in range(len(columns)):
                    red, green, blue = colours((values[y, x] - low) / (high - low))[:3]
                    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
                    own = rows[y] == columns[x]
                    axis.text(
                        x,
                        y,
                        f"{values[y, x]:.2f}",
                        ha="center",
                        va="center",
                        fontsize=9,
                        color="#101820" if bright else "#ffffff",
                        fontweight="bold" if own else "normal",
                    )
        bar = axis.figure.colorbar(image, ax=axis, pad=0.02, fraction=0.05)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        axis.set_title("Similarity of the model's speech to every voice")

    height = 1.9 + 0.36 * len(rows)
    return draw(path, (5.2 if len(columns) <= SMALL_MATRIX else 10.4, height), paint)


def training(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path) -> list[str]:
    """Training curves, a panel per name; ``curves``: name → split → [(step, value)]."""
    names = list(curves)
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    dash = {"train": ("recording", "-", 1.2), "val": ("model", "-", 2.0)}

    def paint(axes: list[Any], theme: Mapping[str, str]) -> None:
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes, names, strict=False):
            for index, (split, points) in enumerate(sorted(curves[name].items())):
                colour, style, width = dash.get(split, (list(LABELS)[index % 3], "--", 1.4))
                x, y = zip(*points, strict=True)
                axis.plot(
                    x, y, style, color=theme[colour], lw=width, label=_short(split), marker="o" if len(x) == 1 else None
                )
            axis.set_title(_short(name))
            axis.grid(axis="y")
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
            axis.set_xlabel("step")
            axis.legend(fontsize=9)

    return draw(path, (10.4, 2.8 * lines), paint, (lines, columns))


def _short(name: str) -> str:
    """A name for an axis: no mathtext, at most 18 characters."""
    name = name if len(name) <= 18 else name[:17] + "…"
    return name.replace("$", r"\$")


def waveform(wav: np.ndarray, bars: int = 96) -> str:
    """The peaks of ``wav`` float [N] as an SVG path, two units wide for each of ``bars`` and 40 high."""
    if not wav.size:
        return ""
    edges = np.linspace(0, wav.size, bars + 1).astype(int)
    peaks = np.array([np.abs(wav[a:b]).max(initial=0.0) for a, b in itertools.pairwise(edges)])
    peaks = peaks / max(float(peaks.max()), 1e-3) * 18.5 + 0.6
    return "".join(f"M{2 * i + 1} {20 - h:.1f}V{20 + h:.1f}" for i, h in enumerate(peaks))
