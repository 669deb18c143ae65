"""Segments of speech one after the other, with the pauses that are asked for and without clicks.

Dimensions: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vall_e.audio import trim_silence

FADE_SECONDS = 0.01  # of both edges at a join: long enough for no click, too short to be heard as a fade
EDGE_DB = 40.0  # below the loudest 20 ms: silence at the edges, as in ``trim_silence``


def join(waves: Sequence[np.ndarray], pauses: Sequence[float], rate: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """One wave of several.

    Where a pause follows, the sound before fades out and the one behind fades in; where none does, they cross-fade,
    with equal power, for what is joined is not the same sound. Silence at the edges that meet is cut off first.

    Args:
        waves: float32 [N_i] of the segments; a single one is returned as it is.
        pauses: seconds between each and the next, one fewer than waves.
        rate: Hz.

    Returns:
        float32 [N], and for each segment where it starts and ends in it, in samples.
    """
    if len(waves) == 1:
        return waves[0], [(0, len(waves[0]))]
    fade = round(FADE_SECONDS * rate)
    out, places = np.zeros(0, dtype=np.float32), []
    pause = None
    for index, wave in enumerate(waves):
        wave = trim_silence(wave, rate, EDGE_DB, margin_seconds=FADE_SECONDS).astype(np.float32).copy()
        if pause is None:
            start = len(out)
            out = np.concatenate((out, wave))
        elif pause > 0 or min(len(out), len(wave)) < fade:
            _fade(out[-fade:], falling=True)
            _fade(wave[:fade], falling=False)
            # What is kept of the edges on both sides is part of the pause.
            silence = np.zeros(max(0, round(pause * rate) - 2 * fade), dtype=np.float32)
            start = len(out) + len(silence)
            out = np.concatenate((out, silence, wave))
        else:
            start = len(out) - fade
            _fade(out[start:], falling=True)
            _fade(wave[:fade], falling=False)
            out[start:] += wave[:fade]
            out = np.concatenate((out, wave[fade:]))
        places.append((start, len(out)))
        pause = pauses[index] if index < len(pauses) else None
    return out, places


def _fade(edge: np.ndarray, falling: bool) -> None:
    """A quarter of a sine over ``edge`` [N], in place: squares of a falling and a rising one add up to 1."""
    ramp = np.sin(np.pi / 2 * (np.arange(len(edge)) + 0.5) / max(1, len(edge))).astype(np.float32)
    edge *= ramp[::-1] if falling else ramp
