"""Clocks: works that are compared take turns in one process, and ratios are medians over the turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(rounds: int, *works: Work) -> list[list[float]]:
    """Seconds of each of ``works`` in each round, behind one call of each that does not count.

    Who begins changes from round to round, so that a machine that grows slower or faster favours nobody."""
    took: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    gc.collect()
    for turn in range(rounds):
        for place in range(len(works)):
            index = (place + turn) % len(works)
            took[index].append(seconds(works[index]))
    return took


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of ``above / below``."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


class ReadBandwidth:
    """Bytes a second at which memory is read by torch itself, by whatever operation is the fastest.

    Args:
        megabytes: size of the tensor that is read; it must be many times the processor's cache.
    """

    def __init__(self, megabytes: int) -> None:
        self.tensor = torch.ones(megabytes * 256, 1024)
        row = torch.ones(1024)
        flat = self.tensor.view(-1)
        self.works: dict[str, Work] = {
            "sum": self.tensor.sum,
            "max": self.tensor.max,
            "matrix times vector": lambda: self.tensor @ row,
            "dot": lambda: flat @ flat,
        }

    def measure(self) -> float:
        """Bytes a second of the fastest operation, each tried twice."""
        size = self.tensor.numel() * self.tensor.element_size()
        return size / min(seconds(work) for work in self.works.values() for _ in range(2))
