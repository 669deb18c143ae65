"""The search for neighbours, against all pairs sorted by Python."""

from __future__ import annotations

import numpy as np
import pytest

from vall_e.corpus.nearest import RECALL, Barred, nearest


def pairs(found):
    """Lists of (index, cosine) from arrays padded with -1."""
    return [
        [(int(i), float(c)) for i, c in zip(row, scores, strict=True) if i >= 0]
        for row, scores in zip(*found, strict=True)
    ]


def brute_force(features, texts, k, spans=None):
    """Neighbours by sorting all pairs with Python's own sort."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)

    def barred(i, j):
        if i == j or texts[i] == texts[j]:
            return True
        if spans is None or spans[i][0] != spans[j][0]:
            return False
        return spans[i][1] < spans[j][2] and spans[j][1] < spans[i][2]

    out = []
    for i in range(len(unit)):
        near = [(-round(float(unit[i] @ unit[j]), 5), j) for j in range(len(unit)) if not barred(i, j)]
        out.append([j for _, j in sorted(near)[:k]])
    return out


@pytest.mark.parametrize("chunk", [1, 50, 10_000])
def test_nearest_equals_sorting_all_pairs_whatever_the_chunk(chunk):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 6)).astype(np.float32)
    texts = [str(i // 4) for i in range(40)]
    spans = [(f"r{i % 3}", start := float(rng.uniform(0, 20)), start + 2.0) for i in range(40)]
    for given in (None, spans):
        found = pairs(nearest(features, Barred.of(texts, given), 5, chunk=chunk))
        assert [[i for i, _ in row] for row in found] == brute_force(features, texts, 5, given)
        for row in found:
            scores = [score for _, score in row]
            assert scores == sorted(scores, reverse=True) and max(scores) <= 1.0


def test_equals_come_in_order_and_few_rows_give_few_neighbours():
    features = np.ones((5, 3), dtype=np.float32)

    def indices(rows, texts, k):
        return [[i for i, _ in row] for row in pairs(nearest(rows, Barred.of(texts), k))]

    assert indices(features, list("abcde"), 3) == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    assert indices(features, list("aabbb"), 3) == [[2, 3, 4], [2, 3, 4], [0, 1], [0, 1], [0, 1]]
    assert indices(features[:2], list("ab"), 3) == [[1], [0]]
    assert indices(features[:1], ["a"], 3) == [[]]
    zero = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert pairs(nearest(zero, Barred.of(["a", "b"]), 1)) == [[(1, 0.0)], [(0, 0.0)]]


def test_stretches_that_touch_do_not_overlap():
    spans = [("r", 0.0, 1.0), ("r", 1.0, 2.0), ("r", 1.9, 3.0), ("q", 0.0, 1.0)]
    found = pairs(nearest(np.ones((4, 2)), Barred.of(list("abcd"), spans), 4))
    assert [[i for i, _ in row] for row in found] == [[1, 2, 3], [0, 3], [0, 3], [0, 1, 2]]


def corpus(kind, count=3000, width=16):
    rng = np.random.default_rng(1)
    if kind == "random":
        return rng.standard_normal((count, width)).astype(np.float32)
    centres = rng.standard_normal((60, width))
    return (centres[rng.integers(0, 60, count)] + 0.3 * rng.standard_normal((count, width))).astype(np.float32)


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_the_index_finds_what_exact_search_finds(kind):
    features, k = corpus(kind), 5
    barred = Barred.of([str(i) for i in range(len(features))])
    exact, scores = nearest(features, barred, k)
    found, cosines = nearest(features, barred, k, exact_below=1)
    right = [set(a.tolist()) & set(b.tolist()) for a, b in zip(exact, found, strict=True)]
    assert sum(map(len, right)) >= RECALL * exact.size
    assert (found >= 0).all() and (np.diff(cosines, axis=1) <= 0).all() and (cosines <= scores + 1e-5).all()
    again, _ = nearest(features, barred, k, exact_below=1)
    assert (again == found).all(), "the same seed finds the same"


def test_barred_neighbours_never_take_the_place_of_others_in_the_index():
    """Almost all of the nearest say the same text: they are asked for, dropped, and others found behind them."""
    features = corpus("clustered")
    cluster = np.argmax(features @ features[:60].T, axis=1)
    texts = [f"text {c}" for c in cluster]
    exact, _ = nearest(features, Barred.of(texts), 5)
    found, _ = nearest(features, Barred.of(texts), 5, exact_below=1)
    assert (found >= 0).all() == (exact >= 0).all()
    assert not any(texts[i] == texts[j] for i, row in enumerate(found.tolist()) for j in row if j >= 0)
    right = [set(a.tolist()) & set(b.tolist()) for a, b in zip(exact, found, strict=True)]
    assert sum(map(len, right)) >= RECALL * (exact >= 0).sum()
    one = Barred.of(["same"] * len(features))
    assert (nearest(features[:200], one.take(np.arange(200)), 3, exact_below=1)[0] == -1).all()
