"""Long recordings into utterances: cuts at the longest pauses between words, never inside one."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from vall_e.corpus.transcription.pauses import Spoken


@dataclass(frozen=True)
class Limits:
    """Seconds: bounds of an utterance, what stays around its words, and pauses that may or must be cut at."""

    shortest: float
    longest: float
    margin: float
    min_pause: float
    max_pause: float


@dataclass(frozen=True)
class Span:
    """Words ``first``..``last`` (exclusive) of a recording, and the seconds that they take with their margin."""

    first: int
    last: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def cut(
    words: Sequence[Spoken],
    seconds: float,
    limits: Limits,
    sure: Sequence[bool] | None = None,
    turns: Collection[int] = (),
) -> list[Span]:
    """Cut until all spans are within the limits, as far as there are pauses.

    A span longer than ``limits.longest`` is cut at its longest pause that leaves both sides long enough, or if there
    is none at its longest pause. Pauses longer than ``limits.max_pause`` are cut at wherever both sides are long
    enough, and turns always.

    Args:
        words: of the whole recording, in order.
        seconds: the recording's duration.
        limits: seconds.
        sure: for each word, whether a cut behind it is allowed; None allows all.
        turns: words behind which another speaker begins.

    Returns:
        Spans in order; together they hold every word once. Those outside the limits could not be cut better.
    """
    count = len(words)
    if not count:
        return []
    gaps = np.array([right.start - left.end for left, right in itertools.pairwise(words)] + [np.inf])
    allowed = np.array(
        [
            word.cut is not None and gap >= limits.min_pause and (sure is None or sure[k])
            for k, (word, gap) in enumerate(zip(words, gaps, strict=True))
        ]
    )
    allowed[-1] = False
    points = _points(words, gaps)
    begins = np.array([0.0 if k == 0 else points[k - 1] for k in range(count)])
    begins = np.maximum(begins, [word.start - limits.margin for word in words])
    stops = np.minimum([*points[:-1], seconds], [word.end + limits.margin for word in words])

    def long_enough(first: int, last: int) -> np.ndarray:
        """For each word but the last of ``first``..``last``: a cut behind it leaves both sides long enough."""
        before = stops[first : last - 1] - begins[first]
        after = stops[last - 1] - begins[first + 1 : last]
        return (before >= limits.shortest) & (after >= limits.shortest)

    out: list[Span] = []
    todo = [(first, last) for first, last in _between(count, turns)][::-1]
    while todo:
        first, last = todo.pop()
        here = allowed[first : last - 1]
        both = here & long_enough(first, last)
        pauses = gaps[first : last - 1]
        too_long = stops[last - 1] - begins[first] > limits.longest
        choice = both if both.any() else here
        must = both & (pauses > limits.max_pause)
        if must.any() or (too_long and choice.any()):
            candidates = must if must.any() else choice
            at = first + int(np.argmax(np.where(candidates, pauses, -1.0))) + 1
            todo += [(at, last), (first, at)]
        else:
            out.append(Span(first, last, float(begins[first]), float(stops[last - 1])))
    return out


def _points(words: Sequence[Spoken], gaps: np.ndarray) -> list[float]:
    """Where a cut behind each word lies: in its pause, or between the two words where there is none."""
    out = []
    for k, word in enumerate(words):
        between = word.end if k + 1 == len(words) else word.end + max(0.0, float(gaps[k])) / 2
        out.append(between if word.cut is None else word.cut)
    return out


def _between(count: int, turns: Collection[int]) -> list[tuple[int, int]]:
    """Ranges of words between turns."""
    edges = [0, *sorted({turn + 1 for turn in turns if 0 <= turn < count - 1}), count]
    return list(itertools.pairwise(edges))
