"""95 % percentile bootstrap over utterances (Efron & Tibshirani, 1993, section 13.3), seeded and vectorised.

Dimensions: N utterances, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

FEWEST = 5  # utterances that say something about the spread of others
_BLOCK = 4_000_000  # indices drawn at a time, to keep memory flat for large test sets


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its interval: ``low`` <= ``high``; None of fewer than ``FEWEST`` utterances."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def bootstrap_ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of ``sum(numerators) / sum(denominators)``, utterances drawn with replacement.

    Args:
        numerators: [N], errors of each utterance.
        denominators: [N], reference length of each; their sum is above 0.
        resamples: R.
        level: share of the resamples between ``low`` and ``high``.

    Raises:
        ValueError: no utterances, lists of unequal length, or all denominators 0.
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise ValueError(f"numerators {top.shape} and denominators {bottom.shape} must be two lists of one length")
    if not top.size or bottom.sum() <= 0:
        raise ValueError("an interval needs at least one utterance with a non-empty reference")
    value = float(top.sum() / bottom.sum())
    if np.count_nonzero(bottom) < FEWEST:
        return Interval(value, None, None)
    rng = np.random.default_rng(seed)
    ratios = []
    for start in range(0, resamples, max(1, _BLOCK // top.size)):
        rows = min(resamples - start, max(1, _BLOCK // top.size))
        drawn = rng.integers(0, top.size, size=(rows, top.size))
        below = bottom[drawn].sum(axis=1)
        # A resample of nothing but empty references says nothing about the ratio.
        ratios.append(top[drawn].sum(axis=1)[below > 0] / below[below > 0])
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of the mean of ``values`` [N]. Raises ValueError where there are none."""
    values = np.asarray(values, dtype=np.float64)
    return bootstrap_ratio(values, np.ones_like(values), resamples, seed, level)
