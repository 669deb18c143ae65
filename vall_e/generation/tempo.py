"""Faster or slower speech of the same pitch: FFmpeg's ``atempo``, which lays like stretches of sound over one another.

Dimensions: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.filter import Graph

SLOWEST, FASTEST = 0.5, 2.0  # beyond them syllables are heard twice, or not at all
BLOCK_SECONDS = 0.03  # handed to FFmpeg at once, so that nobody can hear in which pieces sound came
TAIL_SECONDS = 0.1  # of silence behind the end: what brings the last stretch out, and more than FFmpeg looks at


class Tempo:
    """Sound that is changed in pieces; together they are what the whole becomes at once.

    Args:
        rate: Hz.
        factor: above 1 is faster; at 1 sound stays as it is.

    Raises:
        ValueError: ``factor`` is not between 0.5 and 2.
    """

    def __init__(self, rate: int, factor: float) -> None:
        if not SLOWEST <= factor <= FASTEST:
            raise ValueError(f"sound is stretched by a tempo between {SLOWEST:g} and {FASTEST:g}, not {factor:g}")
        self.rate, self.factor = rate, factor
        self._rest = np.zeros(0, dtype=np.float32)
        self._taken = self._given = 0
        self._graph = None if factor == 1 else self._built()

    def push(self, wav: np.ndarray, last: bool = False) -> np.ndarray:
        """The samples that ``wav`` float32 [N] made certain, float32.

        Args:
            last: no more will come: with what is left, all pieces hold N / factor samples, rounded.
        """
        if self._graph is None:
            return wav
        self._taken += len(wav)
        total = round(self._taken / self.factor) if last else math.inf
        if last:
            wav = np.concatenate((wav, np.zeros(round(TAIL_SECONDS * self.rate), dtype=np.float32)))
        out = np.concatenate([np.zeros(0, dtype=np.float32), *self._filtered(wav, last)])
        out = out[: int(min(len(out), total - self._given))]
        self._given += len(out)
        return out

    def _filtered(self, wav: np.ndarray, last: bool) -> Iterator[np.ndarray]:
        import av

        wav = np.concatenate((self._rest, wav))
        size = round(BLOCK_SECONDS * self.rate)
        whole = len(wav) if last else len(wav) // size * size
        self._rest = wav[whole:]
        for start in range(0, whole, size):
            block = np.ascontiguousarray(wav[None, start : min(start + size, whole)], dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(block, "flt", "mono")
            frame.sample_rate = self.rate
            self._graph.push(frame)
        if last:
            self._graph.push(None)
        while True:
            try:
                yield self._graph.pull().to_ndarray()[0]
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    def _built(self) -> Graph:
        import av

        graph = av.filter.Graph()
        source = graph.add_abuffer(sample_rate=self.rate, format="flt", layout="mono", time_base=Fraction(1, self.rate))
        graph.link_nodes(source, graph.add("atempo", f"{self.factor:.6f}"), graph.add("abuffersink")).configure()
        return graph


def stretched(wav: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """``wav`` float32 [N] at ``factor`` times its tempo, float32 [N / factor]; see ``Tempo``."""
    return Tempo(rate, factor).push(wav, last=True)


def tempo_for(seconds: float, wanted: float) -> float:
    """The tempo at which ``seconds`` of sound last as near to ``wanted`` seconds as can be."""
    return min(max(seconds / wanted, SLOWEST), FASTEST)
