"""The order in which utterances come: any place of an endless sequence costs the same, none is remembered.

A permutation is computed, not kept: a Feistel network is one of 4^b numbers whatever its rounds are, and a number that
falls outside 0..n-1 goes through it again until it is inside (cycle walking; Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"). Balanced orders give each group its share of an epoch, exactly, and go through a group's
utterances in permutations of their own. Dimensions: n places, G groups.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vall_e.data.store import Grouping

ROUNDS = 6
SMALL = 1 << 16  # so many utterances are permuted in memory, in 1 ms
_GOLDEN = 0x9E3779B97F4A7C15


class Order:
    """Every utterance once an epoch or, with groups, as often as its group's share says.

    Args:
        count: utterances.
        seed: of the permutations.
        groups: to be balanced; None: each utterance once.
        exponent: a group's share is its size to this power, of the sum over groups: 1 as they are, 0 all alike.
        chosen: int64 [n], the utterances that come; None: all.
        lengths: int64 [count] of utterances, by which the first epoch rises; None: it is shuffled as the others.

    Attributes:
        size: places in an epoch.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        groups: Grouping | None = None,
        exponent: float = 1.0,
        chosen: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ) -> None:
        count = count if chosen is None else len(chosen)
        self.count, self.seed, self.groups, self.size = count, seed, groups, count
        self.chosen, self.lengths, self._first = chosen, lengths, None
        self._small = lru_cache(maxsize=2)(self._permutation)
        if groups is not None:
            self.rows, self.starts = groups.order, groups.starts
            if chosen is not None:
                code = groups.code[chosen]
                self.rows = chosen[np.argsort(code, kind="stable")]
                self.starts = np.concatenate(([0], np.bincount(code, minlength=len(groups.starts) - 1).cumsum()))
            sizes = np.diff(self.starts)
            self.there = np.flatnonzero(sizes)  # names are the corpus', a split need not have all
            self.sizes = sizes[self.there]
            shares = self.sizes.astype(float) ** exponent
            self.quota = np.maximum(1, np.round(count * shares / shares.sum())).astype(np.int64)
            self.ends = self.quota.cumsum()
            self.size = int(self.ends[-1])

    def at(self, places: np.ndarray) -> np.ndarray:
        """Utterances int64 [n] at ``places`` int64 [n] of the sequence, from 0."""
        out = self._shuffled(places)
        if self.lengths is not None:
            first = places < self.size
            out[first] = self._rising()[places[first]]
        return out

    def rises(self, place: int) -> bool:
        """Whether ``place`` is in an epoch that goes from short to long."""
        return self.lengths is not None and place < self.size

    def _rising(self) -> np.ndarray:
        if self._first is None:
            every = self._shuffled(np.arange(self.size))
            self._first = every[np.argsort(self.lengths[every], kind="stable")]
        return self._first

    def _shuffled(self, places: np.ndarray) -> np.ndarray:
        if self.groups is None:
            return self._plain(places) if self.chosen is None else self.chosen[self._plain(places)]
        epoch, place = np.divmod(places, self.size)
        rank = permuted(place, self.size, _key(self.seed, epoch))
        group = np.searchsorted(self.ends, rank, side="right")
        before = epoch * self.quota[group] + rank - (self.ends - self.quota)[group]
        turn, nth = np.divmod(before, self.sizes[group])
        nth = permuted(nth, self.sizes[group], _key(self.seed, turn, group))
        return self.rows[self.starts[self.there[group]] + nth]

    def _plain(self, places: np.ndarray) -> np.ndarray:
        epoch, place = np.divmod(places, self.count)
        if self.count > SMALL:
            return permuted(place, self.count, _key(self.seed, epoch))
        out = np.empty_like(places)
        for one in np.unique(epoch):
            out[epoch == one] = self._small(int(one))[place[epoch == one]]
        return out

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 1, epoch)).permutation(self.count)


def permuted(place: np.ndarray, count: np.ndarray | int, key: np.ndarray) -> np.ndarray:
    """Where each place goes in a permutation of 0..count-1: int64 [n].

    Args:
        place: int64 [n], 0 <= place < count.
        count: int64 [n] or one for all, above 0.
        key: uint64 [n], which permutation.
    """
    at, count, key = (np.array(a, np.uint64) for a in np.broadcast_arrays(place, count, key))
    bits = np.maximum(1, np.ceil(np.log2(np.maximum(count, 2)) / 2)).astype(np.uint64)
    walking = np.arange(len(at))
    while len(walking):
        at[walking] = _network(at[walking], bits[walking], key[walking])
        walking = walking[at[walking] >= count[walking]]
    return at.astype(np.int64)


def _network(at: np.ndarray, bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = at >> bits, at & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(key + np.uint64(number + 1))) & mask)
    return left << bits | right


def _key(seed: int, *parts: np.ndarray) -> np.ndarray:
    """Uint64 [n]: a key for the seed and the parts int64 [n]."""
    key = _mix(np.full(len(parts[0]), seed % 2**64, np.uint64))
    for part in parts:
        key = _mix(key ^ part.astype(np.uint64))
    return key


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): uint64 to uint64, evenly."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
