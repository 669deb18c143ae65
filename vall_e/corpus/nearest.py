"""Who is nearest: exact cosines in chunks, or an inverted-file index (FAISS) where a speaker has too many utterances.

Dimensions: U utterances, D width of a feature, k neighbours, n lists of the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

CHUNK = 1 << 24  # cosines computed at once
RECALL = 0.95
_SAMPLE = 256  # queries by which the index is set
_BLOCK = 4096  # queries asked at once
_TRAINED_ON = 64  # points a list, of which its centre is learned


@dataclass(frozen=True)
class Barred:
    """What makes two utterances no neighbours: the same text, or stretches of one recording that overlap.

    Attributes:
        text: int64 [U], equal for equal texts.
        recording: int64 [U], equal for utterances of one recording.
        start, end: float64 [U], seconds within it.
    """

    text: np.ndarray
    recording: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str], spans: Sequence[tuple[str, float, float]] | None = None) -> Barred:
        """From texts and (recording, start, end); without these, each utterance is a recording of its own."""
        count = len(texts)
        if spans is None:
            return cls(_codes(texts), np.arange(count), np.zeros(count), np.ones(count))
        start, end = (np.asarray([span[i] for span in spans], dtype=np.float64) for i in (1, 2))
        return cls(_codes(texts), _codes([span[0] for span in spans]), start, end)

    def take(self, members: np.ndarray) -> Barred:
        """Of some utterances, int64 [U']."""
        return Barred(*(getattr(self, name)[members] for name in ("text", "recording", "start", "end")))

    def mask(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whether ``rows`` may not have ``others``: int64, which broadcast against each other → bool."""
        out = (self.text[rows] == self.text[others]) | (rows == others)
        rows, others = np.broadcast_arrays(rows, others)
        same = np.nonzero(self.recording[rows] == self.recording[others])
        one, other = rows[same], others[same]
        out[same] |= (self.start[one] < self.end[other]) & (self.start[other] < self.end[one])
        return out


def _codes(values: Sequence[str]) -> np.ndarray:
    """A number for each value, int64, equal for equal ones."""
    return pa.array(values, pa.string()).dictionary_encode().indices.to_numpy().astype(np.int64)


def nearest(
    features: np.ndarray, barred: Barred, top_k: int, *, exact_below: int = 1 << 62, seed: int = 0, chunk: int = CHUNK
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar rows to each row that are not barred, by cosine; of equals the earlier one first.

    Args:
        features: float [U, D]; a row of zeros is similar to nothing (cosine 0).
        barred: who may not be whose neighbour.
        top_k: k.
        exact_below: with so many rows or more, an index finds at least 95 % of them (``RECALL``, of a sample).
        seed: of the index.
        chunk: cosines computed at once, which bounds the memory.

    Returns:
        indices int64 [U, k], best first, -1 where there are fewer, and their cosines float32 [U, k].
    """
    count = len(features)
    found = np.full((count, top_k), -1, dtype=np.int64), np.zeros((count, top_k), dtype=np.float32)
    if count < 2:
        return found
    unit = _unit(features)
    if count < exact_below:
        _fill(found, np.arange(count), _exact(unit, barred, top_k, np.arange(count), chunk))
    else:
        _indexed(unit, barred, top_k, seed, chunk, found)
    return found


Rows = list[tuple[np.ndarray, np.ndarray]]


def _unit(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, norms, out=np.zeros(features.shape, dtype=np.float32), where=norms > 0)


def _exact(unit: np.ndarray, barred: Barred, top_k: int, rows: np.ndarray, chunk: int) -> Rows:
    """Of each of ``rows``, the neighbours among all and their cosines."""
    count, out = len(unit), []
    k, others = min(top_k, count), np.arange(count)[None]
    for part in np.split(rows, range(max(1, chunk // count), len(rows), max(1, chunk // count))):
        # Rounding makes equals equal: sums of floats in another order differ in the last digits.
        cosines = np.round(unit[part] @ unit.T, 5)
        cosines[barred.mask(part[:, None], others)] = -np.inf
        for row in cosines:
            candidates = np.flatnonzero(row >= np.partition(row, count - k)[count - k])
            out.append(_best(candidates, row[candidates], top_k))
    return out


def _best(candidates: np.ndarray, cosines: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((candidates, -cosines))[:top_k]
    order = order[np.isfinite(cosines[order])]
    return candidates[order], cosines[order]


def _fill(found: tuple[np.ndarray, np.ndarray], rows: np.ndarray, answers: Rows) -> None:
    for row, (indices, cosines) in zip(rows, answers, strict=True):
        found[0][row, : len(indices)], found[1][row, : len(indices)] = indices, cosines


def _indexed(
    unit: np.ndarray, barred: Barred, top_k: int, seed: int, chunk: int, found: tuple[np.ndarray, np.ndarray]
) -> None:
    """Fill ``found`` through an inverted file of n = 4 sqrt(U) lists by inner product (``IndexIVFFlat``).

    How many lists a query looks into (nprobe) is doubled until a seeded sample of queries finds ``RECALL`` of its exact
    neighbours, whatever the data. Barred ones are asked for as well and dropped: a row that then lacks some is asked
    again for eight times as many, and at last exactly, so that they never take the place of neighbours.
    """
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # sums of the clustering depend on how many share them
    try:
        lists = int(4 * len(unit) ** 0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(unit.shape[1]), unit.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid = seed, 10, _TRAINED_ON
        index.cp.min_points_per_centroid = 1
        index.train(unit)
        index.add(unit)
        _set_probes(index, unit, barred, top_k, seed, chunk)
        for start in range(0, len(unit), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(unit)))
            _fill(found, rows, _ask(index, unit, barred, top_k, rows, chunk))
    finally:
        faiss.omp_set_num_threads(threads)


def _set_probes(index: object, unit: np.ndarray, barred: Barred, top_k: int, seed: int, chunk: int) -> None:
    chosen = np.random.default_rng(seed).choice(len(unit), min(_SAMPLE, len(unit)), replace=False)
    rows = np.sort(chosen)
    wanted = [set(indices.tolist()) for indices, _ in _exact(unit, barred, top_k, rows, chunk)]
    index.nprobe = 1
    while index.nprobe < index.nlist:
        answers = _ask(index, unit, barred, top_k, rows, chunk)
        right = sum(len(want & set(got.tolist())) for want, (got, _) in zip(wanted, answers, strict=True))
        if right >= (1 + RECALL) / 2 * sum(map(len, wanted)):  # a margin, for the sample is not the whole
            return
        index.nprobe = min(2 * index.nprobe, index.nlist)


def _ask(index: object, unit: np.ndarray, barred: Barred, top_k: int, rows: np.ndarray, chunk: int) -> Rows:
    answers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for asked in (2 * top_k + 8, 16 * top_k + 64):
        rest = np.asarray([row for row in rows if row not in answers], dtype=np.int64)
        if len(rest) and asked < len(unit):
            answers |= _few(index, unit, barred, top_k, rest, asked)
    rest = np.asarray([row for row in rows if row not in answers], dtype=np.int64)
    if len(rest):
        answers |= zip(rest.tolist(), _exact(unit, barred, top_k, rest, chunk), strict=True)
    return [answers[row] for row in rows.tolist()]


def _few(
    index: object, unit: np.ndarray, barred: Barred, top_k: int, rows: np.ndarray, asked: int
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Answers of the rows that have k neighbours among the ``asked`` nearest."""
    _, near = index.search(unit[rows], asked)
    good = (near >= 0) & ~barred.mask(rows[:, None], near)
    out = {}
    for row, indices, kept in zip(rows.tolist(), near, good, strict=True):
        if kept.sum() >= top_k:
            candidates = indices[kept]
            out[row] = _best(candidates, np.round(unit[candidates] @ unit[row], 5), top_k)
    return out
