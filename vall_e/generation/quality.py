"""What can go wrong in speech, and how it is noticed: it runs away, falls silent, loops, or leaves out the text.

Dimensions: L levels, T frames, N samples, S phones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

TOO_SHORT = 0.35  # of what the phones take on average
TOO_LONG = 2.5  # times that
SILENT_DB = 50.0  # below the loudest 20 ms
NO_SOUND = 1e-3  # peak
LONGEST_SILENCE = 1.5  # seconds, between sounds or at an edge
LOOP_SECONDS = 1.5  # of level 0 that repeats itself exactly,
LOOP_PERIOD = 0.6  # in stretches of at most this many seconds,
LOOP_TIMES = 4  # at least so often
SLACK = 2  # phones at the end that the alignment may leave out: it is not that exact
MISSING = 3  # phones left out on the way, from which something is missing
SQUEEZED = 0.3  # of what its phones take on average: in less nobody says a word, see docs/generation.md

Kind = Literal["empty", "runaway", "short", "long", "silence", "loop", "missing", "unspoken", "repeated"]


@dataclass(frozen=True)
class Fault:
    """Something wrong; ``message`` is for a listener."""

    kind: Kind
    message: str


UNSAID: tuple[Kind, ...] = ("empty", "runaway", "short", "missing", "unspoken")  # some of the text may be missing


def faults_of_length(frames: int, finished: bool, expected: float, frame_rate: float) -> list[Fault]:
    """Of a row that was decoded.

    Args:
        frames: T.
        finished: it stopped by itself.
        expected: frames that its text takes on average.
    """
    seconds = frames / frame_rate
    if not finished:
        return [Fault("runaway", f"cut off after {seconds:.1f} s: the model did not stop by itself")]
    if frames == 0:
        return [Fault("empty", "the model stopped at once: no audio")]
    if frames < TOO_SHORT * expected:
        return [Fault("short", "much shorter than the text: words may be missing")]
    if frames > TOO_LONG * expected + frame_rate:
        return [Fault("long", f"{seconds:.1f} s for what takes {expected / frame_rate:.1f} s on average")]
    return []


def faults_of_sound(wav: np.ndarray, rate: int) -> list[Fault]:
    """Of float32 [N]: no sound at all, or a long stretch of silence."""
    if not len(wav):
        return []
    if float(np.abs(wav).max()) < NO_SOUND:
        return [Fault("silence", "silent throughout")]
    hop = max(1, rate // 50)
    rms = np.sqrt(np.pad(wav, (0, -len(wav) % hop)).reshape(-1, hop).astype(np.float64).__pow__(2).mean(1))
    longest = _longest_run(rms < rms.max() * 10 ** (-SILENT_DB / 20)) * hop / rate
    return [Fault("silence", f"{longest:.1f} s of silence")] if longest >= LONGEST_SILENCE else []


def faults_of_codes(codes: np.ndarray, frame_rate: float) -> list[Fault]:
    """Of int64 [L, T]: the same frames again and again, by their level 0."""
    first = codes[0]
    for period in range(1, min(len(first) - 1, round(LOOP_PERIOD * frame_rate)) + 1):
        run = _longest_run(first[period:] == first[:-period]) + period
        if run >= max(LOOP_TIMES * period, LOOP_SECONDS * frame_rate):
            return [Fault("loop", f"the same {period / frame_rate:.2f} s again and again for {run / frame_rate:.1f} s")]
    return []


def faults_of_reading(path: np.ndarray, phones: Sequence[str], per_phone: float) -> list[Fault]:
    """What the alignment says of the text: its end not reached, some of it left out, some said twice.

    The way through the text has a frame or two even for phones that nobody said, as a leap costs more: a word is also
    left out where it has next to no frames.

    Args:
        path: int64 [T], place of the phone that each frame says (``alignment.trace``).
        phones: the S that should be said; gaps between words are " ".
        per_phone: frames that a phone takes on average.
    """
    places = [i for i, phone in enumerate(phones) if phone.strip()]
    if not places or not len(path):
        return []
    said = np.bincount(path[path >= 0], minlength=len(phones))
    behind = {i for i in places if i > path[-1]}
    words = [set(word) for word in _words(phones) if len(word) > 1]  # a sound alone may be as short as a frame
    squeezed = [word for word in words if said[list(word)].sum() < SQUEEZED * per_phone * len(word)]
    faults = []
    end = next((word for word in squeezed if places[-1] in word), set())
    if len(behind) > SLACK or end:
        faults.append(Fault("unspoken", f"the end was not spoken: {_written(phones, behind | end)}"))
    unsaid = {i for i in places if not said[i]} - behind - end
    left_out = unsaid if len(unsaid) >= MISSING else set()
    left_out = left_out.union(*(word for word in squeezed if word != end and not word & behind))
    if left_out:
        faults.append(Fault("missing", f"left out: {_written(phones, left_out)}"))
    back = np.flatnonzero(np.diff(path) < 0)
    if len(back):
        again = range(int(path[back[0] + 1]), int(path[back[0]]) + 1)
        faults.append(Fault("repeated", f"said twice: {_written(phones, again)}"))
    return faults


def _words(phones: Sequence[str]) -> list[list[int]]:
    """Places of the phones of each word."""
    runs = groupby(enumerate(phones), key=lambda place: bool(place[1].strip()))
    return [[i for i, _ in run] for spoken, run in runs if spoken]


def _written(phones: Sequence[str], places: Collection[int]) -> str:
    return f"/{''.join(phones[min(places) : max(places) + 1]).strip()}/"


def _longest_run(true: np.ndarray) -> int:
    """Length of the longest stretch of ones in bool [N]."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], true, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))
