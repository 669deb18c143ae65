"""The same take twice: fingerprints that survive coding, resampling and another level, and pairs that share one.

A word of 32 bits every 10 ms says how the energies of neighbouring bands change (Haitsma and Kalker, "A highly robust
audio fingerprinting system", ISMIR 2002, section 4, with a window short enough for single words and bands of telephone
speech). Words that two utterances have in common but for a few bits, and where, propose a pair. What decides is the
stretch in which the two are least alike: a coder spoils bits everywhere, a sentence with another word in it all bits in
one place, which a mean over the sentence does not see. What is compared at once is bounded by ``_WORDS``, never by the
square of the utterances.

Dimensions: N samples, F frames, one word each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

import numpy as np

from vall_e.audio import resample

RATE = 8_000
HOP = 80
_WINDOW = 1024
_BANDS = 33
_HERTZ = (200.0, 3400.0)
_QUIET_DB = 30.0  # frames this far below the loudest have no word: coders leave nothing of them
_WORDS = 1 << 24  # words in memory at once
_MASKS = (np.uint32(0xFFFFFF00), np.uint32(0x00FFFFFF))  # a coder changes a bit of most words, seldom in both halves
_NEXT = 4  # utterances with the same word that each is compared with
_ALIKE = 0.6  # share of equal bits below which no shift of some frames helps
_STRETCH = 25  # frames, a short syllable, in which a copy may not be another sound
_SHIFT = 3  # frames to either side of a shared word's place that are tried
_OVERLAP = 0.8  # share of the longer fingerprint that must have found its counterpart


def fingerprint(wav: np.ndarray, rate: int) -> np.ndarray:
    """``wav`` float [N] at ``rate`` Hz → uint32 [F]; 0 for a frame that is too quiet to say anything."""
    wav = np.pad(resample(wav, rate, RATE), _WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(wav, _WINDOW)[::HOP]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32))))
    energy = np.add.reduceat(power, _edges(), axis=1)[:, :_BANDS]
    change = np.diff(energy[:, :-1] - energy[:, 1:], axis=0, prepend=0.0)
    words = np.packbits(change > 0, axis=1).view(">u4")[:, 0].astype(np.uint32)
    loudness = energy.sum(1)
    return np.where(loudness > loudness.max(initial=0.0) * 10.0 ** (-_QUIET_DB / 10.0), words, np.uint32(0))


@cache
def _edges() -> np.ndarray:
    """First bins of the bands, spaced as their logarithms, and the bin behind the last."""
    return np.unique(np.round(np.geomspace(*_HERTZ, _BANDS + 1) * _WINDOW / RATE).astype(int))


def equal_bits(one: np.ndarray, other: np.ndarray, shift: int) -> float:
    """Share of equal bits of two fingerprints, 0..1, where frame i of ``one`` is frame i + ``shift`` of ``other``.

    0 where they overlap in less than most of the longer one. Chance gives 0.5.
    """
    bits = _equal(one, other, shift)
    return float(bits.mean()) / 32 if len(bits) else 0.0


def least_equal_bits(one: np.ndarray, other: np.ndarray, shift: int) -> float:
    """As ``equal_bits``, in the stretch of a quarter of a second where the share is lowest."""
    bits = _equal(one, other, shift)
    if not len(bits):
        return 0.0
    sums, width = np.concatenate([[0], np.cumsum(bits, dtype=np.int64)]), min(_STRETCH, len(bits))
    return int((sums[width:] - sums[:-width]).min()) / (32 * width)


def _equal(one: np.ndarray, other: np.ndarray, shift: int) -> np.ndarray:
    """Numbers of equal bits of the frames that both have; none where these are too few."""
    first, last = max(0, -shift), max(0, -shift, min(len(one), len(other) - shift))
    a, b = one[first:last], other[first + shift : last + shift]
    heard = (a != 0) & (b != 0)
    least = _OVERLAP * max(np.count_nonzero(one), np.count_nonzero(other))
    return 32 - np.bitwise_count(a[heard] ^ b[heard]) if heard.sum() >= least else np.zeros(0, np.uint8)


def near_duplicates(prints: Sequence[np.ndarray], threshold: float) -> list[tuple[int, int, float]]:
    """Pairs of indices (the first is the lower) whose share of equal bits is ``threshold`` or more wherever one listens
    (``least_equal_bits``), in order, with that share."""
    best: dict[tuple[int, int], float] = {}
    for one, other, shift in _proposed(prints):
        if best.get((one, other), 0.0) >= threshold or equal_bits(prints[one], prints[other], shift) < _ALIKE:
            continue
        found = max(least_equal_bits(prints[one], prints[other], shift + s) for s in range(-_SHIFT, _SHIFT + 1))
        best[one, other] = max(found, best.get((one, other), 0.0))
    return sorted((one, other, value) for (one, other), value in best.items() if value >= threshold)


def _proposed(prints: Sequence[np.ndarray]) -> Iterator[tuple[int, int, int]]:
    """Pairs of about one length that have a word in common, with the distance of its places.

    A part of all words is in memory at a time. In their order by word and owner each is compared with the next few, so
    that a word that everybody has costs no more than another.
    """
    heard = np.array([np.count_nonzero(words) for words in prints], dtype=np.int64)
    parts = -(-int(heard.sum()) // _WORDS) or 1
    for mask, part in product(_MASKS, range(parts)):
        words, owners, places = _part(prints, mask, part, parts)
        order = np.lexsort((places, owners, words))
        words, owners, places = words[order], owners[order], places[order]
        found = []
        for step in range(1, _NEXT + 1):
            one, other = owners[:-step], owners[step:]
            lengths = np.minimum(heard[one], heard[other]), np.maximum(heard[one], heard[other])
            alike = (words[:-step] == words[step:]) & (one != other) & (lengths[0] >= _OVERLAP * lengths[1])
            found.append(np.stack([one, other, places[step:] - places[:-step]], axis=1)[alike])
        yield from map(tuple, np.unique(np.concatenate(found), axis=0).tolist())


def _part(
    prints: Sequence[np.ndarray], mask: np.uint32, part: int, parts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The words whose bits under ``mask`` have the remainder ``part``, whose they are and where they stand."""
    found = [np.flatnonzero((words != 0) & ((words & mask) % np.uint32(parts) == part)) for words in prints]
    owners = np.repeat(np.arange(len(prints), dtype=np.int32), [len(places) for places in found])
    words = [words[places] & mask for words, places in zip(prints, found, strict=True)]
    return np.concatenate([*words, []]).astype(np.uint32), owners, np.concatenate([*found, []]).astype(np.int32)
