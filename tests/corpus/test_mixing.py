"""Mixing waves: the ratio that was asked for, the voice untouched, in place, and never clipped."""

from __future__ import annotations

import numpy as np
import pytest

from vall_e.corpus.mixing import active_rms, looped, mix, placed, reverberate

RATE = 8000
SEEDS = range(12)


def voice(rng: np.random.Generator, seconds: float = 0.7, level: float = 0.1) -> np.ndarray:
    """Noise that speaks and pauses, float32 [N]."""
    count = int(seconds * RATE)
    talking = np.repeat(rng.random(-(-count // 800)) < 0.6, 800)[:count]
    talking[:800] = True
    return (level * rng.standard_normal(count) * np.where(talking, 1.0, 1e-4)).astype(np.float32)


def level(wav: np.ndarray) -> float:
    """RMS over 20 ms frames within 40 dB of the loudest, frame by frame."""
    frames = [wav[at : at + 160].astype(float) for at in range(0, len(wav) - 159, 160)]
    power = [float(np.dot(frame, frame)) / 160 for frame in frames]
    loud = [p for p in power if p >= max(power) / 10_000]
    return (sum(loud) / len(loud)) ** 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mixture_has_the_ratio_that_was_asked_for_and_is_the_voice_plus_the_scaled_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = voice(rng), voice(rng, level=rng.uniform(0.001, 1.0))
    ratio = rng.uniform(-5, 20)
    mixture, part = mix(one, other, ratio, RATE)
    left = mixture - part
    gain = float(np.dot(left, one) / np.dot(one, one))
    assert 0 < gain <= 1.0001
    np.testing.assert_allclose(left, gain * one, atol=1e-6)
    assert 20 * np.log10(level(gain * one) / level(part)) == pytest.approx(ratio, abs=1e-3)
    scale = float(np.dot(part, other) / np.dot(other, other))
    np.testing.assert_allclose(part, scale * other, atol=1e-6)
    assert np.abs(mixture).max() <= 0.9901
    if np.abs(one + part / gain).max() < 0.99:
        assert gain == pytest.approx(1.0, abs=1e-5)


def test_a_mixture_that_would_clip_is_quieter_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    mixture, part = mix(voice(rng, level=0.3), voice(rng), -5.0, RATE)
    assert np.abs(mixture).max() == pytest.approx(0.99, abs=1e-4)
    assert np.abs(part).max() > 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_pauses_do_not_count_for_the_level(seed: int) -> None:
    wav = voice(np.random.default_rng(seed))
    assert active_rms(wav, RATE) == pytest.approx(level(wav), rel=1e-6)
    padded = np.concatenate((np.zeros(RATE), wav, np.zeros(3 * RATE))).astype(np.float32)
    assert active_rms(padded, RATE) == pytest.approx(level(wav), rel=1e-6)
    assert active_rms(wav[:7], RATE) == pytest.approx(float(np.sqrt((wav[:7].astype(float) ** 2).mean())))


def test_short_noise_is_looped_and_long_noise_cut_at_any_place() -> None:
    noise = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    places = set()
    for seed in SEEDS:
        piece = looped(noise, 350, np.random.default_rng(seed))
        assert len(piece) == 350
        np.testing.assert_array_equal(piece[100:], piece[:-100])
        np.testing.assert_array_equal(np.sort(piece[:100]), np.sort(noise))
        places.add(float(piece[0]))
        short = looped(noise, 30, np.random.default_rng(seed))
        start = int(np.flatnonzero(noise == short[0])[0])
        np.testing.assert_array_equal(short, np.roll(noise, -start)[:30])
    assert len(places) > 6


def test_a_pause_is_not_mixed_in() -> None:
    quiet = np.zeros(10_000, dtype=np.float32)
    quiet[7000:7050] = 0.5
    for seed in SEEDS:
        assert np.abs(looped(quiet, 200, np.random.default_rng(seed))).max() == 0.5
        piece = placed(quiet, 200, np.random.default_rng(seed))
        assert len(piece) == 200 and np.abs(piece).max() == 0.5


def test_a_short_voice_stands_somewhere_in_silence_and_a_long_one_is_cut() -> None:
    one = np.arange(1, 51, dtype=np.float32)
    places = set()
    for seed in SEEDS:
        wide = placed(one, 120, np.random.default_rng(seed))
        places.add(start := int(wide.argmax()) - 49)
        np.testing.assert_array_equal(wide[start : start + 50], one)
        assert len(wide) == 120 and np.count_nonzero(wide) == 50
        narrow = placed(one, 20, np.random.default_rng(seed))
        np.testing.assert_array_equal(narrow, np.arange(narrow[0], narrow[0] + 20))
    assert len(places) > 6
    np.testing.assert_array_equal(placed(one, 50, np.random.default_rng(0)), one)


@pytest.mark.parametrize("seed", range(4))
def test_a_room_moves_nothing_and_keeps_the_level(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wav = voice(rng)
    impulse = np.zeros(900, dtype=np.float32)
    impulse[120:] = rng.standard_normal(780) * np.exp(-np.arange(780) / 150) * 0.2
    impulse[120] = 1.5  # the direct sound
    wet = reverberate(wav, impulse, RATE)
    expected = np.convolve(wav.astype(float), impulse[120:])[: len(wav)]
    np.testing.assert_allclose(wet, expected * level(wav) / level(expected), atol=1e-5)
    assert level(wet) == pytest.approx(level(wav), rel=1e-4)
    lags = [float(np.dot(wav[100:-100], wet[100 + lag : len(wet) - 100 + lag])) for lag in range(-100, 100)]
    assert int(np.argmax(lags)) == 100
    np.testing.assert_allclose(reverberate(wav, 0.3 * np.eye(1, 50, 20)[0], RATE), wav, atol=1e-6)
