"""Stretches of speech: where the sound is, no longer than allowed, cut where it is quiet."""

from __future__ import annotations

import numpy as np
import pytest

from vall_e.generation.pauses import stretches

RATE = 8000


def sound(seconds: float, level: float = 0.3) -> np.ndarray:
    return level * np.sin(2 * np.pi * 300 * np.arange(round(seconds * RATE)) / RATE)


def silence(seconds: float) -> np.ndarray:
    return 1e-4 * np.random.default_rng(0).standard_normal(round(seconds * RATE))


def test_long_pauses_part_and_short_ones_do_not() -> None:
    wav = np.concatenate((silence(1), sound(0.5), silence(0.3), sound(0.4), silence(1.5), sound(0.7), silence(0.5)))
    found = np.array(stretches(wav, RATE, 10.0)) / RATE
    np.testing.assert_allclose(found, [[1.0, 2.2], [3.7, 4.4]], atol=0.08)


def test_what_is_too_long_is_cut_at_its_quietest_place() -> None:
    wav = np.concatenate((sound(1.2), silence(0.1), sound(0.5), silence(0.25), sound(1.0), sound(3.0)))
    found = np.array(stretches(wav, RATE, 2.4)) / RATE
    np.testing.assert_allclose(found[0], [0, 1.8], atol=0.1)
    np.testing.assert_allclose(found[1, 0], 2.05, atol=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_loud_is_lost_and_nothing_is_longer_than_allowed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [part for _ in range(12) for part in (sound(rng.uniform(0.1, 2)), silence(rng.uniform(0, 1)))]
    wav = np.concatenate(parts)
    found = stretches(wav, RATE, 1.5)
    covered = np.zeros(len(wav), dtype=bool)
    for start, end in found:
        assert 0 <= start < end <= len(wav) and end - start <= 1.5 * RATE + 1 and not covered[start:end].any()
        covered[start:end] = True
    assert covered[np.abs(wav) > 0.1].all()
    assert (~covered).sum() > 0.5 * RATE, "long silences are left out"


def test_silence_has_no_stretches_and_limits_without_sense_are_refused() -> None:
    assert stretches(silence(2), RATE, 3.0) == [] and stretches(np.zeros(0), RATE, 3.0) == []
    with pytest.raises(ValueError, match="0.1 s"):
        stretches(sound(1), RATE, 0.1)
