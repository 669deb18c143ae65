"""Bootstrap intervals: ordering, seed, coverage, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from vall_e.evaluation import intervals
from vall_e.evaluation.intervals import FEWEST, bootstrap_mean, bootstrap_ratio


def test_value_lies_between_the_bounds_and_more_data_narrows_them() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 6, 400)
    errors = rng.binomial(counts, 0.2)
    few, many = bootstrap_ratio(errors[:40], counts[:40]), bootstrap_ratio(errors, counts)
    assert many.value == errors.sum() / counts.sum()
    for found in (few, many):
        assert found.low < found.value < found.high
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_seed_decides_and_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean(values, 500, seed=3)
    assert whole == bootstrap_mean(values, 500, seed=3)
    assert whole != bootstrap_mean(values, 500, seed=4)
    monkeypatch.setattr(intervals, "_BLOCK", 120)
    assert bootstrap_mean(values, 500, seed=3) == whole


def test_coverage_is_about_95_per_cent() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        counts = rng.integers(2, 6, 80)
        found = bootstrap_ratio(rng.binomial(counts, 0.15), counts, 300, seed=trial)
        inside += found.low <= 0.15 <= found.high
    assert 0.89 <= inside / 300 <= 0.99


def test_same_values_have_no_spread_and_few_utterances_no_interval() -> None:
    assert bootstrap_mean([2.0] * FEWEST).as_dict() == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert bootstrap_mean([0.5]).as_dict() == {"value": 0.5, "low": None, "high": None}
    found = bootstrap_ratio([1, *[0] * FEWEST], [2, *[0] * FEWEST])  # empty references say nothing
    assert (found.value, found.low, found.high) == (0.5, None, None)


@pytest.mark.parametrize(("top", "bottom"), [([], []), ([0], [0]), ([1, 2], [1])])
def test_nothing_to_measure_is_an_error(top: list[int], bottom: list[int]) -> None:
    with pytest.raises(ValueError):
        bootstrap_ratio(top, bottom)
