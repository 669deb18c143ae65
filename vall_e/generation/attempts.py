"""What is wrong is drawn anew: whole segments, and the new part of an edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from vall_e.decoding import SamplingConfig
from vall_e.generation.planning import reseed
from vall_e.generation.quality import Fault
from vall_e.generation.respond import is_drawn
from vall_e.models.vall_e import VallE


class Attempt(Protocol):
    """Something that was drawn."""

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is wrong with it."""

    @property
    def rank(self) -> tuple[float, ...]:
        """The greater the better, among those with as many faults."""


A = TypeVar("A", bound=Attempt)


def best_attempts(
    model: VallE,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    draw: Callable[[Sequence[int], Sequence[int]], Sequence[A]],
) -> list[A]:
    """One for each seed, and what is wrong in it anew, up to ``sampling.retries`` times; the best attempt is kept.

    Where nothing is drawn a new attempt would say the same: none is made.

    Args:
        draw: called with the indices of what is to be drawn, and with the seed of each.
    """
    best = list(draw(range(len(seeds)), seeds))
    retries = sampling.retries if is_drawn(model, sampling) else 0
    for attempt in range(1, retries + 1):
        again = [i for i, found in enumerate(best) if found.faults]
        if not again:
            break
        for i, found in zip(again, draw(again, [reseed(seeds[i], attempt) for i in again]), strict=True):
            best[i] = max(best[i], found, key=lambda f: (-len(f.faults), f.rank))
    return best
