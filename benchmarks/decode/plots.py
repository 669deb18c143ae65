"""Curves of what was measured, drawn from the details of the JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Details = Mapping[str, Any]


def _batches(axes: Axes, details: Details) -> None:
    for name, found in details.items():
        sizes = [int(size) for size in found["by_batch"]]
        axes.plot(sizes, list(found["by_batch"].values()), "o-", label=f"{name} ({found['weights']})")
    axes.set(title="Batch", xlabel="rows", ylabel="tokens / s", xscale="log", yscale="log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.legend()


def _past(axes: Axes, details: Details) -> None:
    for name in ("llama", "yoco"):
        axes.plot(details["past"], details[name]["ms_per_token"], "o-", label=name)
    axes.set(title="Past", xlabel="frames before the step", ylabel="ms / token")
    axes.set_ylim(bottom=0)
    axes.legend()


def _formats(axes: Axes, details: Details) -> None:
    speeds = {name: found["tokens_per_second"] for name, found in details["formats"].items()}
    speeds["transformers float32"] = details["ref_fp32"]["hf_tokens_per_second"]
    axes.barh(list(speeds), list(speeds.values()), color=["tab:blue"] * (len(speeds) - 1) + ["tab:gray"])
    axes.invert_yaxis()
    axes.set(title="Weights, reference, batch 1", xlabel="tokens / s")


def _stream(axes: Axes, details: Details) -> None:
    audio, clock = zip(*details["chunks"], strict=True)
    axes.step(clock, audio, where="post", marker="o", label="audio that has come")
    played = [clock[0], clock[0] + audio[-1]], [0, audio[-1]]
    axes.plot(*played, "--", color="tab:gray", label="played from the first on")
    axes.set(title="Stream", xlabel="s by the clock", ylabel="s of audio")
    axes.legend()


PANELS: dict[str, Callable[[Axes, Details], None]] = {
    "batch8_over_single": _batches,
    "per_token_3000_over_75": _past,
    "over_hf_generate": _formats,
    "first_audio_s": _stream,
}


def draw(details: Details, path: Path) -> bool:
    """Write a PNG with a panel for each figure that has a curve; False where none was measured."""
    there = [name for name in PANELS if name in details]
    if not there:
        return False
    columns = min(2, len(there))
    rows = -(-len(there) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False, layout="constrained")
    for panel in axes.flat[len(there) :]:
        panel.remove()
    for panel, name in zip(axes.flat, there, strict=False):
        PANELS[name](panel, details[name])
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
