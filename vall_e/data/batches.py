"""Which samples make batch k: a pure function of (seed, k), so that resuming costs nothing and forgets nothing.

Utterances come in shuffled epochs; a pool of several batches is sorted by length and cut so that the largest batch,
padding included, is as small as it can be. They come in shuffled order.

Of several processes that train together, each takes whole pools in turn and makes no others. So what W processes see in
the steps of a pool is what one process sees in W pools: the same samples, each once.

Where the first epoch goes from short utterances to long ones (``train.order``), so do its batches.

Batches have few shapes (rows in fours, lengths rounded up by ``pack``): for each new shape a CPU's kernels are
compiled anew, and tensors of ever new sizes riddle the heap until allocation itself is slow. Measured with 5.5M
parameters on 2 cores: 590 ms a step at first and 850 after 150 steps of free shapes; see docs/features.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from itertools import pairwise

import numpy as np

from vall_e.data.order import Order
from vall_e.data.samples import SampleMaker
from vall_e.data.store import Grouping
from vall_e.models.packing import Sample

POOL = 32  # batches of training that are sorted together
ROWS = 4  # rows of a batch come in such groups where it has enough of them


class Batches:
    """An endless, seekable sequence of batches.

    Args:
        maker: makes the samples; its ``train`` says which utterances come, how often and in which order.
        frames: positions that a batch should hold, padding included; those of a pool hold about as many on average.
        seed: of everything drawn.
        pool: batches that are sorted by length together, and made at once.

    Attributes:
        left_out: utterances that are shorter or longer than ``train`` asks for.

    Raises:
        ValueError: there is nothing to make batches of, or nothing to balance.
    """

    def __init__(self, maker: SampleMaker, frames: int, seed: int, pool: int = POOL) -> None:
        utterances = maker.corpus.utterances
        if not len(utterances):
            raise ValueError("no utterances to make batches of: is the split empty?")
        self.maker, self.frames, self.seed, self.pool = maker, frames, seed, pool
        lengths, chosen = utterances.codes.lengths, maker.chosen()
        self.left_out = 0 if chosen is None else len(utterances) - len(chosen)
        rising = lengths if maker.train.order == "duration" and maker.augment else None
        self.order = Order(len(utterances), seed, _balanced(maker), maker.train.balance_exponent, chosen, rising)
        rng, length = np.random.default_rng((seed, 0)), maker.layout.length
        probed = rng.integers(self.order.count, size=64)
        probed = probed if chosen is None else chosen[probed]
        probe = [length(maker.make(int(index), 10**9, rng)) for index in probed]
        rows = frames / (float(np.mean(probe)) * 1.05)
        self.group = ROWS if rows >= 2 * ROWS else 1
        self.samples_per_pool = pool * max(1, round(rows)) if self.group == 1 else ROWS * round(pool * rows / ROWS)
        self._take(0, 1)

    def _take(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._made = lru_cache(maxsize=2)(self._make_pool)

    def share(self, rank: int, world: int) -> Batches:
        """What process ``rank`` of the ``world`` that train together takes of these batches."""
        assert 0 <= rank < world
        out = copy(self)
        out._take(rank, world)
        return out

    @property
    def steps_per_epoch(self) -> float:
        """Batches of this process in which the utterances of an epoch have come."""
        return self.order.size / self.samples_per_pool * self.pool / self.world

    def batch(self, step: int) -> list[Sample]:
        """Batch number ``step``, from 0."""
        return self._made(step // self.pool)[step % self.pool]

    def _make_pool(self, number: int) -> list[list[Sample]]:
        count, place = self.pool, number * self.world + self.rank
        rng = np.random.default_rng((self.seed, 2, place))
        places = np.arange(place * self.samples_per_pool, (place + 1) * self.samples_per_pool)
        step = number * count // self.maker.train.accumulate
        samples = [self.maker.make(int(index), step, rng) for index in self.order.at(places)]
        samples.sort(key=self.maker.layout.length)
        edges = cut([self.maker.layout.length(sample) for sample in samples], count, self.group)
        batches = [samples[a:b] for a, b in pairwise(edges)]
        turn = range(count) if self.order.rises(int(places[-1])) else rng.permutation(count)
        return [batches[i] for i in turn]


def cut(lengths: Sequence[int], count: int, group: int) -> list[int]:
    """Where to cut rows into batches so that the largest area, rows times the longest, is as small as it can be.

    Args:
        lengths: of the rows, rising.
        count: of batches.
        group: rows stay together in such groups, of which there are ``count`` or more.

    Returns:
        ``count + 1`` places: 0, the first rows of all other batches, and the number of rows.
    """
    longest = [length * group for length in lengths[group - 1 :: group]]  # area of a batch of one group by its last

    def cuts(area: int) -> list[int] | None:
        """From the longest rows down, to each batch what fits into ``area``: no way leaves fewer rows to the rest."""
        end, edges = len(longest), [len(lengths)]
        for left in range(count - 1, 0, -1):
            end -= min(area // longest[end - 1], end - left)
            edges.append(end * group)
        return [0, *edges[::-1]] if end * longest[end - 1] <= area else None

    areas = range(longest[-1], longest[-1] * len(longest) + 1)
    best = cuts(areas[bisect_left(areas, True, key=lambda area: cuts(area) is not None)])
    assert best is not None
    return best


def _balanced(maker: SampleMaker) -> Grouping | None:
    """The groups whose shares are balanced in training."""
    kind, utterances = maker.train.balance, maker.corpus.utterances
    if kind == "none" or not maker.augment:
        return None
    if kind == "group" and not any(utterances.names["group"]):
        raise ValueError(
            "train.balance group: no recording of this corpus is in a group: give them some (ingest.layout) or take "
            "speaker, language or none"
        )
    return utterances.groups[kind]
