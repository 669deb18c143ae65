"""Pictures of one utterance that a model spoke: its codes beside the true ones, what its frames attend to. PNG.

Dimensions: L levels, T frames, S phones, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

NAMED = 60  # phones of which each is named on an axis
IMAGE = {"aspect": "auto", "interpolation": "nearest", "origin": "lower"}


def codes_picture(path: Path, drawn: np.ndarray, true: np.ndarray, codes: int) -> None:
    """Codes int64 [L, T] of the model above those of the recording, on one scale of time; colours are code numbers.

    Args:
        codes: n of the codec.
    """
    longest = max(drawn.shape[1], true.shape[1], 1)
    figure = Figure(figsize=(9, 1.6 + 0.24 * len(true)), layout="constrained")
    for axis, values, title in zip(figure.subplots(2, sharex=True), (drawn, true), ("drawn", "recording"), strict=True):
        if values.shape[1]:
            axis.imshow(values, cmap="turbo", vmin=0, vmax=codes - 1, **IMAGE)
        axis.set(title=title, ylabel="level", xlim=(-0.5, longest - 0.5), yticks=range(len(true)))
    axis.set_xlabel("frame")
    figure.savefig(path, dpi=110)


def maps_picture(
    path: Path,
    attention: np.ndarray | None,
    aligned: np.ndarray | None,
    places: Mapping[str, int],
    phones: Sequence[str],
) -> None:
    """What the frames that were drawn look at.

    Args:
        attention: float [T, P], mean over the heads of the last layer that attends; None where none does.
        aligned: float [T, S], probability of the phone that is said, by the alignment head; None without one.
        places: where among the P positions the parts of the sequence begin.
        phones: S of them.
    """
    maps: list[tuple[np.ndarray, str]] = []
    if attention is not None:
        maps.append((attention, "attention"))
    if aligned is not None and aligned.shape[1]:
        maps.append((aligned, "alignment"))
    if not maps:
        return
    figure = Figure(figsize=(9, 3.4 * len(maps)), layout="constrained")
    for axis, (values, title) in zip(np.atleast_1d(figure.subplots(len(maps), sharex=True)), maps, strict=True):
        axis.imshow(values.T, cmap="magma", **IMAGE)
        axis.set(title=title, xlabel="frame")
        if title == "attention":
            axis.set_yticks(list(places.values()), list(places))
            axis.hlines(np.array(list(places.values())) - 0.5, -0.5, len(values) - 0.5, color="white", lw=0.5)
        else:
            _name(axis, phones)
    figure.savefig(path, dpi=110)


def _name(axis: Any, phones: Sequence[str]) -> None:
    if len(phones) <= NAMED:
        axis.set_yticks(range(len(phones)), list(phones), fontsize=7)
    axis.set_ylabel("phone")
