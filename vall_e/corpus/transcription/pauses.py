"""Pauses between words: where a recording may be cut, and where a word really begins and ends.

A recogniser's times of words are right to a tenth of a second or so, and by attention a word lasts until the next one.
Silence is exact, so each boundary is put into the pause that belongs to it.

Dimensions: N samples, F frames of 10 ms.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vall_e.evaluation.hearing import Word

FRAME_SECONDS = 0.01
_FLOOR_DB = -90.0
# Silence is this far below the loudest speech, or in noise this little above the quietest frames.
_BELOW_SPEECH_DB = 35.0
_ABOVE_NOISE = 0.25
_SHORTEST = 3


class Spoken(NamedTuple):
    """A word in its recording: seconds, a probability, and where to cut behind it; None where there is no pause."""

    text: str
    start: float
    end: float
    score: float
    cut: float | None


def levels_db(wav: np.ndarray, rate: int) -> np.ndarray:
    """``wav`` float32 [N] → level of each 10 ms in dB of full scale, float64 [F]."""
    frame = int(rate * FRAME_SECONDS)
    count = len(wav) // frame
    power = np.square(wav[: count * frame].reshape(count, frame), dtype=np.float64).mean(axis=1)
    return 10.0 * np.log10(np.maximum(power, 10.0 ** (_FLOOR_DB / 10.0)))


def silent_runs(levels: np.ndarray) -> list[tuple[int, int]]:
    """First frame and end of each stretch of silence of 30 ms or more; ``levels`` dB [F]."""
    if not len(levels):
        return []
    low, high = np.percentile(levels, (5, 99))
    quiet = levels < max(high - _BELOW_SPEECH_DB, low + _ABOVE_NOISE * (high - low))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a >= _SHORTEST]


def quietest(levels: np.ndarray, start: int, end: int) -> float:
    """Seconds at the middle of the quietest 10 ms in the middle half of the frames ``start``..``end``."""
    quarter = (end - start) // 4
    first = start + quarter
    part = levels[first : max(first + 1, end - quarter)]
    return (first + int(np.argmin(part)) + 0.5) * FRAME_SECONDS


def place(words: Sequence[Word], wav: np.ndarray, rate: int, offset: float, last: bool) -> list[Spoken]:
    """Put the boundaries of words into pauses.

    A pause belongs to the boundary that is nearest to it, if it lies between the middles of the two words; of several
    the longest. Where the times leave a gap between two words, their boundary is all of it: attention puts a short last
    word half into the pause behind it, so that the gap's middle is farther off than the word's beginning. Words without
    a pause between them keep their times and cannot be cut apart.

    Args:
        words: in order, seconds from the start of ``wav``.
        wav: float32 [N], the stretch of the recording that the words are in.
        rate: Hz.
        offset: where ``wav`` begins in the recording, seconds.
        last: the recording ends with ``wav``; else there is a cut at its end.

    Returns:
        The words in seconds of the recording. Cuts lie between the end of their word and the start of the next.
    """
    if not words:
        return []
    levels = levels_db(wav, rate)
    seconds = len(wav) / rate
    # Boundary k is before word k; 0 and the last are the ends of the stretch.
    edges = [(0.0, 0.0), *((left.end, right.start) for left, right in itertools.pairwise(words)), (seconds, seconds)]
    middles = [0.0, *((word.start + word.end) / 2 for word in words), seconds]
    pauses = _assign(silent_runs(levels), np.sort(edges, axis=1), np.array(middles))
    starts, ends, cuts = [w.start for w in words], [w.end for w in words], [None] * len(words)
    at = 0.0
    for k in range(len(words) + 1):
        pause = pauses.get(k)
        if pause is None:
            continue
        begin, stop = max(pause[0] * FRAME_SECONDS, at), pause[1] * FRAME_SECONDS
        if stop <= begin:
            continue
        if k:
            ends[k - 1] = begin
        if k < len(words):
            starts[k] = stop
        if 0 < k < len(words):
            cuts[k - 1] = quietest(levels, round(begin / FRAME_SECONDS), pause[1])
        at = stop
    if not last:
        cuts[-1] = seconds
    return _ordered(words, starts, ends, cuts, offset, seconds)


def _assign(runs: Sequence[tuple[int, int]], edges: np.ndarray, middles: np.ndarray) -> dict[int, tuple[int, int]]:
    """Boundary → its pause in frames; ``edges`` [boundaries, 2] and ``middles`` are seconds."""
    out: dict[int, tuple[int, int]] = {}
    for run in runs:
        begin, stop = run[0] * FRAME_SECONDS, run[1] * FRAME_SECONDS
        # Boundaries whose two middles the run lies between, at least in part.
        low = int(np.searchsorted(middles[1:], begin, side="right"))
        high = min(len(edges) - 1, int(np.searchsorted(middles[:-1], stop, side="left")) - 1)
        if low > high:
            continue
        near = edges[low : high + 1]
        distance = np.maximum(begin - near[:, 1], near[:, 0] - stop)  # below 0: how far one reaches into the other
        best = low + int(np.argmin(distance))
        if best not in out or run[1] - run[0] > out[best][1] - out[best][0]:
            out[best] = run
    return out


def _ordered(
    words: Sequence[Word],
    starts: Sequence[float],
    ends: Sequence[float],
    cuts: Sequence[float | None],
    offset: float,
    seconds: float,
) -> list[Spoken]:
    """Times made to follow one another, cuts between them."""
    out: list[Spoken] = []
    at = 0.0
    for index, word in enumerate(words):
        start = min(max(starts[index], at), seconds)
        end = min(max(ends[index], start), seconds)
        follows = starts[index + 1] if index + 1 < len(words) else seconds
        cut = cuts[index]
        sound = cut is not None and end <= cut <= follows
        out.append(Spoken(word.text, offset + start, offset + end, word.score, offset + cut if sound else None))
        at = cut if sound else end
    return out


def break_point(wav: np.ndarray, rate: int) -> float:
    """Where a long stretch is best cut in two, seconds: in the longest pause of its second half.

    Args:
        wav: float32 [N], longer than 10 s.
        rate: Hz.
    """
    levels = levels_db(wav, rate)
    half = len(levels) // 2
    runs = [(max(a, half), b) for a, b in silent_runs(levels) if b > half + _SHORTEST]
    if runs:
        start, end = max(runs, key=lambda run: run[1] - run[0])
        return quietest(levels, start, end)
    return (half + int(np.argmin(levels[half:])) + 0.5) * FRAME_SECONDS
