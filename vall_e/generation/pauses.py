"""Where somebody speaks in a recording, in stretches that are not too long.

Dimensions: N samples, F frames of 10 ms.
"""

from __future__ import annotations

import numpy as np

FRAME_SECONDS = 0.01
WINDOW_FRAMES = 3  # a frame's loudness is measured over 30 ms, more than a period of any voice
SILENT_DB = 40.0  # below the loudest frame
NO_SOUND = 1e-3  # peak
PAUSE_SECONDS = 0.6  # that end a stretch wherever they are
MARGIN_SECONDS = 0.05  # kept around a stretch
QUIET_SECONDS = 0.15  # over which the quietest place to cut at is looked for


def stretches(wav: np.ndarray, rate: int, longest: float) -> list[tuple[int, int]]:
    """Stretches of speech, each at most ``longest`` seconds.

    Long pauses end a stretch; what is still too long is cut at its quietest place in the second half of what is
    allowed. Silence around a stretch is left out.

    Args:
        wav: float [N].
        rate: Hz.
        longest: seconds.

    Returns:
        first sample and the one behind the last of each, in order; none for a recording without sound.

    Raises:
        ValueError: ``longest`` is not above 0.2 s.
    """
    if not longest > 0.2:
        raise ValueError(f"stretches of speech of at most {longest} s cannot be cut: allow more than 0.2 s")
    size = max(1, round(FRAME_SECONDS * rate))
    if len(wav) == 0 or float(np.abs(wav).max()) < NO_SOUND:
        return []
    power = _power(wav, size)
    loud = power > power.max() * 10 ** (-SILENT_DB / 10)
    margin, limit = round(MARGIN_SECONDS / FRAME_SECONDS), int(longest / FRAME_SECONDS)
    found: list[tuple[int, int]] = []
    for first, last in _runs(loud, round(PAUSE_SECONDS / FRAME_SECONDS)):
        for start, end in _pieces(power, max(0, first - margin), min(len(power), last + margin), limit):
            inside = np.flatnonzero(loud[start:end])
            if len(inside):
                found.append((max(start, start + inside[0] - margin), min(end, start + inside[-1] + 1 + margin)))
    return [(start * size, min(end * size, len(wav))) for start, end in found]


def _power(wav: np.ndarray, size: int) -> np.ndarray:
    """Mean square of each frame and its neighbours, float64 [F]."""
    padded = np.pad(np.asarray(wav, dtype=np.float64), (0, -len(wav) % size)).reshape(-1, size)
    return np.convolve((padded**2).mean(1), np.full(WINDOW_FRAMES, 1 / WINDOW_FRAMES), mode="same")


def _runs(loud: np.ndarray, pause: int) -> list[tuple[int, int]]:
    """Where bool [F] is true, with gaps shorter than ``pause`` frames closed: first and one behind the last."""
    at = np.flatnonzero(loud)
    breaks = np.flatnonzero(np.diff(at) > pause)
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(at, breaks + 1)]


def _pieces(power: np.ndarray, start: int, end: int, limit: int) -> list[tuple[int, int]]:
    """``start`` to ``end`` in pieces of at most ``limit`` frames."""
    window = round(QUIET_SECONDS / FRAME_SECONDS)
    out = []
    while end - start > limit:
        quiet = np.convolve(power[start : start + limit], np.ones(window), mode="same")
        cut = start + limit // 2 + int(quiet[limit // 2 :].argmin())
        out.append((start, cut))
        start = cut
    return [*out, (start, end)]
