"""Mel-cepstral distance, pitch and duration against values that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.evaluation.test_voices import voice
from vall_e.evaluation.acoustics import (
    BANDS,
    HOP,
    ORDER,
    RATE,
    Sound,
    analyse,
    cepstra_of,
    compare,
    mel_cepstral_distance,
    pitch_of,
    track_pitch,
    warp,
)


def straight(frames: int) -> np.ndarray:
    return np.stack(2 * [np.arange(frames)], axis=1)


def test_the_distance_of_a_known_cepstrum() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(7, ORDER))
    assert mel_cepstral_distance(first, first, straight(7)) == 0
    second = first.copy()
    second[:, 3] += 0.5
    assert mel_cepstral_distance(first, second, straight(7)) == pytest.approx(10 / math.log(10) * math.sqrt(2) * 0.5)


@pytest.mark.parametrize("m", [1, 2, ORDER])
def test_it_is_the_rms_of_the_difference_of_two_spectra_in_db(m: int) -> None:
    """A spectrum lifted by A cos(m w) dB is A / sqrt 2 away; by a constant, nothing: gain does not count."""
    spectrum = np.random.default_rng(1).normal(size=(5, BANDS))
    ripple = 4.0 * np.cos(np.pi * m * (np.arange(BANDS) + 0.5) / BANDS)
    lifted = spectrum + (ripple + 9.0) * math.log(10) / 20
    found = mel_cepstral_distance(cepstra_of(spectrum), cepstra_of(lifted), straight(5))
    assert found == pytest.approx(4.0 / math.sqrt(2))


def test_a_wave_is_no_distance_from_itself_louder_or_later_and_far_from_another_vowel() -> None:
    wav = voice(120, 700, 1.0)
    sound, louder = analyse(wav, RATE), analyse(3.0 * wav, RATE)
    assert compare(sound, sound).mcd == 0 and compare(louder, sound).mcd < 1e-3
    late = analyse(np.concatenate([np.zeros(5 * HOP, np.float32), wav]), RATE)
    assert compare(late, sound).mcd < 1.0
    assert compare(analyse(voice(120, 2200, 1.0), RATE), sound).mcd > 5.0


def test_warping_undoes_a_change_of_pace() -> None:
    frames = np.random.default_rng(2).normal(size=(20, ORDER))
    slow = np.repeat(frames, 3, axis=0)
    path = warp(slow, frames)
    assert mel_cepstral_distance(slow, frames, path) == pytest.approx(0, abs=1e-9)
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [59, 19]
    assert (np.diff(path, axis=0) >= 0).all() and (np.diff(path, axis=0) <= 1).all()


def test_pitch_of_a_voice_that_is_known() -> None:
    low, high = (analyse(voice(pitch, 700, 0.8), RATE) for pitch in (110, 220))
    found = pitch_of(low)
    assert found.mean == pytest.approx(110, rel=0.02) and found.spread < 0.5 and found.voiced > 0.8
    beside = compare(high, low)
    assert beside.f0_rmse == pytest.approx(12.0, abs=0.3)  # an octave
    assert beside.duration_ratio == pytest.approx(1.0, abs=0.05)
    noise = np.random.default_rng(3).normal(0, 0.1, RATE // 2).astype(np.float32)
    assert pitch_of(analyse(noise, RATE)).voiced < 0.3


def test_pitch_stands_at_its_time() -> None:
    """A glide of an octave in a second, behind a third of a second that is no voice."""
    before, wait = np.random.default_rng(5).normal(0, 0.05, RATE // 3), RATE // 3
    f0 = 100 * 2 ** (np.arange(RATE) / RATE)
    buzz = np.diff(np.floor(np.cumsum(f0) / RATE), prepend=0)
    wav = np.concatenate([before, np.convolve(buzz, np.exp(-np.arange(80) / 20))[:RATE]]).astype(np.float32)
    frames = 1 + wav.size // HOP
    found = track_pitch(wav, frames)
    assert np.isnan(found[: wait // HOP - 5]).mean() > 0.9
    places = np.arange(wait // HOP + 5, frames - 6)
    expected = 100 * 2 ** ((places * HOP - wait) / RATE)
    away = 12 * np.log2(found[places] / expected)
    assert np.abs(away).max() < 0.25 and abs(np.median(away)) < 0.06  # a frame early or late: 0.12


@pytest.mark.parametrize("samples", [0, 1, 800, 872, 873, 880])
def test_too_short_for_three_periods_has_no_pitch(samples: int) -> None:
    assert np.isnan(track_pitch(np.full(samples, 0.1, np.float32), 6)).all()


def test_no_generalised_ufunc_of_numba_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their caches break where several processes fill them at once, and a broken one ends the process."""
    from numba.np.ufunc.gufunc import GUFunc

    def called(self: GUFunc, *_: object, **__: object) -> None:
        raise AssertionError(self.__name__)

    monkeypatch.setattr(GUFunc, "__call__", called)
    first, second = (analyse(voice(pitch, 700, 0.5), RATE) for pitch in (110, 130))
    assert compare(first, second).f0_rmse > 0


def test_correlation_follows_the_melody_and_not_the_height() -> None:
    cepstra = np.random.default_rng(4).normal(size=(40, ORDER))
    melody = 120 * 2 ** (np.sin(np.arange(40) / 6) / 4)
    melody[:5] = np.nan
    base = Sound(0.4, cepstra, melody)
    octave = compare(Sound(0.8, cepstra, 2 * melody), base)
    assert octave.f0_correlation == pytest.approx(1) and octave.f0_rmse == pytest.approx(12)
    assert octave.duration_ratio == 2
    assert compare(Sound(0.4, cepstra, 14400 / melody), base).f0_correlation == pytest.approx(-1)
    unvoiced = compare(Sound(0.4, cepstra, np.full(40, np.nan)), base)
    assert unvoiced.f0_rmse is None and unvoiced.f0_correlation is None
    flat = compare(Sound(0.4, cepstra, np.full(40, 100.0)), base)
    assert flat.f0_correlation is None and flat.f0_rmse > 0


def test_silence_has_no_acoustics() -> None:
    for wav in (np.zeros(0, np.float32), np.zeros(RATE, np.float32), np.full(9000, np.nan, np.float32)):
        assert analyse(wav, RATE) is None
