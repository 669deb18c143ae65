"""Orders that are computed: permutations of any size, and shares of an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vall_e.data import order
from vall_e.data.order import Order, permuted
from vall_e.data.store import Grouping


def _grouping(folder: Path, sizes: list[int]) -> Grouping:
    code = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    Grouping.save(folder, "speaker", code, len(sizes))
    return Grouping(folder, "speaker")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 255, 1000, 4097])
def test_a_permutation_of_any_size_is_one(count: int) -> None:
    orders = [permuted(np.arange(count), count, np.full(count, key, np.uint64)) for key in range(5)]
    for one in orders:
        assert sorted(one.tolist()) == list(range(count))
    assert count < 7 or len({one.tobytes() for one in orders}) == 5


def test_each_element_goes_anywhere_equally_often() -> None:
    keys = np.arange(6000, dtype=np.uint64)
    for place in (0, 5, 9):
        counts = np.bincount(permuted(np.full(6000, place), 10, keys), minlength=10)
        assert ((counts - 600) ** 2 / 600).sum() < 28  # chi-square, 9 degrees of freedom: 0.1 %


@pytest.mark.parametrize("small", [1 << 16, 0])
def test_any_place_can_be_asked_for_and_an_epoch_has_all(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembered (few utterances) or computed (many)."""
    monkeypatch.setattr(order, "SMALL", small)
    whole = Order(101, 3).at(np.arange(303))
    for epoch in range(3):
        assert sorted(whole[101 * epoch : 101 * (epoch + 1)].tolist()) == list(range(101))
    assert (whole[:101] != whole[101:202]).any() and (whole != Order(101, 4).at(np.arange(303))).any()
    some = np.array([300, 7, 150, 101, 100])
    np.testing.assert_array_equal(Order(101, 3).at(some), whole[some])


def test_many_utterances_are_not_held_in_memory() -> None:
    far = Order(10**12, 0).at(np.array([0, 10**12 - 1, 5 * 10**12 + 3]))
    assert ((far >= 0) & (far < 10**12)).all()


@pytest.mark.parametrize(("exponent", "shares"), [(1.0, [10, 30, 160]), (0.0, [67, 67, 67]), (0.5, [31, 54, 125])])
def test_groups_have_their_share_of_every_epoch(tmp_path: Path, exponent: float, shares: list[int]) -> None:
    groups = _grouping(tmp_path, [10, 30, 0, 160])
    if exponent == 0.5:  # of 200: by the roots of the sizes
        shares = np.round(200 * np.sqrt([10, 30, 160]) / np.sqrt([10, 30, 160]).sum()).astype(int).tolist()
    balanced = Order(200, 1, groups, exponent)
    drawn = balanced.at(np.arange(4 * balanced.size)).reshape(4, -1)
    for epoch in drawn:
        assert np.bincount(groups.code[epoch], minlength=4)[[0, 1, 3]].tolist() == shares
    for group in (0, 1, 3):  # inside a group all come equally often, whatever its share is
        times = Counter(int(i) for i in drawn.reshape(-1) if groups.code[i] == group)
        assert len(times) == min(len(times), 4 * shares[[0, 1, 3].index(group)])
        assert max(times.values()) - min(times.values()) <= 1
    np.testing.assert_array_equal(balanced.at(np.array([350])), drawn.reshape(-1)[[350]])
