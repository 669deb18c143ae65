"""Putting a piece into a recording: where to cut, how loud, and a join that is not heard.

Dimensions: N samples of the recording, M of the piece.
"""

from __future__ import annotations

import numpy as np

BLOCK = 0.02  # seconds over which loudness is looked at
ACTIVE_DB = 25.0  # blocks this far below the loudest hold no speech


def quietest(wav: np.ndarray, places: np.ndarray, rate: int) -> int:
    """Index of the one of ``places`` (int64 [P], sample numbers) around which float ``wav`` [N] has least energy."""
    half = max(1, round(BLOCK * rate / 2))
    energy = [float(np.square(wav[max(0, p - half) : p + half], dtype=np.float64).sum()) for p in places]
    return int(np.argmin(energy))


def active_level(wav: np.ndarray, rate: int) -> float:
    """Root mean square of what is spoken in float ``wav`` [N]: of the blocks that are not far below the loudest; 0 for
    less than a block."""
    size = max(1, round(BLOCK * rate))
    blocks = wav[: len(wav) // size * size].reshape(-1, size).astype(np.float64)
    power = np.square(blocks).mean(1)
    if power.max(initial=0.0) <= 0:
        return 0.0
    return float(np.sqrt(power[power >= power.max() * 10 ** (-ACTIVE_DB / 10)].mean()))


def cross_fade(out: np.ndarray, into: np.ndarray) -> np.ndarray:
    """From ``out`` to ``into``, both float [N], at equal power: gains cos and sin."""
    angle = (np.arange(len(out)) + 0.5) / max(1, len(out)) * (np.pi / 2)
    return (out * np.cos(angle) + into * np.sin(angle)).astype(np.float32)


def splice(recording: np.ndarray, piece: np.ndarray, start: int, end: int, lead: int, tail: int) -> np.ndarray:
    """``recording`` float32 [N] with ``piece`` float32 [M] in place of the samples ``start`` to ``end``.

    The first ``lead`` samples of the piece lie over those before ``start`` and the last ``tail`` over those behind
    ``end``; there one fades into the other. All other samples are those of the recording and the piece, bit for bit.
    """
    assert 0 <= lead <= start <= end and tail <= len(recording) - end and lead + tail <= len(piece)
    core = piece[lead : len(piece) - tail]
    into = cross_fade(recording[start - lead : start], piece[:lead])
    back = cross_fade(piece[len(piece) - tail :], recording[end : end + tail])
    parts = (recording[: start - lead], into, core, back, recording[end + tail :])
    return np.concatenate(parts).astype(np.float32, copy=False)
