"""Measures against signals whose figures are known, and the gates that judge them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vall_e.audio import load, measure_loudness, normalize_loudness, resample, save_wav
from vall_e.corpus.gates import chosen, exact_duplicates, faults
from vall_e.corpus.measures import bandwidth, content_rate, flat_tops, full_scale, wada_snr
from vall_e.preparation import QualityConfig

RATE = 16_000


def voice(seconds: float, rate: int, seed: int = 0, floor: float = 1e-4) -> np.ndarray:
    """Something like speech: gamma-distributed amplitudes in bursts of tilted noise over a faint floor, float32 [N]."""
    rng = np.random.default_rng(seed)
    count = int(seconds * rate)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= 1.0 + np.arange(len(spectrum)) / len(spectrum) * rate / 2000
    bursts = np.repeat(rng.gamma(0.7, 1.0, count // (rate // 10) + 1), rate // 10)[:count]
    wav = np.fft.irfft(spectrum, count) * bursts
    return (0.3 * wav / np.abs(wav).max() + floor * rng.standard_normal(count)).astype(np.float32)


@pytest.mark.parametrize("snr", [0.0, 5.0, 10.0, 20.0])
def test_snr_of_gamma_speech_in_white_noise(snr: float) -> None:
    """The model of the paper: amplitudes of a gamma distribution of shape 0.4, noise of a normal one."""
    rng = np.random.default_rng(int(snr))
    speech = rng.gamma(0.4, 1.0, 200_000) * rng.choice([-1.0, 1.0], 200_000)
    noise = rng.standard_normal(200_000) * speech.std() * 10 ** (-snr / 20)
    for level in (1.0, 0.2):  # it does not hear how loud both are
        mixed = (speech + noise) * level / np.abs(speech).max()
        assert wada_snr(mixed.astype(np.float32)) == pytest.approx(snr, abs=1.5)


def test_noise_alone_has_no_signal_and_a_floor_lowers_the_ratio() -> None:
    rng = np.random.default_rng(0)
    assert wada_snr(rng.standard_normal(100_000).astype(np.float32) * 0.1) < -3.0  # noise alone
    assert wada_snr(voice(3.0, RATE)) > wada_snr(voice(3.0, RATE, floor=0.02)) + 5


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000, 44_100, 48_000])
def test_upsampled_telephone_speech_is_known_whatever_the_rate(rate: int, tmp_path) -> None:
    for seed in range(3):
        up = resample(voice(1.0, 8_000, seed), 8_000, rate)
        assert content_rate(bandwidth(up, rate), rate) == 8_000
        # 16 bits of a low level have a floor of their own.
        coded, _ = load(save_wav(tmp_path / "up.wav", 0.1 * up, rate))
        assert content_rate(bandwidth(coded, rate), rate) == 8_000
        own = voice(1.0, rate, seed)
        assert bandwidth(own, rate) >= 0.9 * rate / 2 and content_rate(bandwidth(own, rate), rate) == rate


def test_a_dull_sound_has_the_band_of_its_recording() -> None:
    rate = 16_000
    t = np.arange(rate) / rate
    vowel = sum(np.sin(2 * np.pi * 120 * k * t) / k**2 for k in range(1, 66))
    wav = (0.2 * vowel + 3e-4 * np.random.default_rng(0).standard_normal(rate)).astype(np.float32)
    assert bandwidth(wav, rate) == rate / 2
    assert bandwidth(wav[:100], rate) > 0  # shorter than a window


def test_clipping_is_found_at_any_level() -> None:
    wav = voice(1.0, RATE)
    hard = np.clip(4 * wav, -0.3, 0.3)
    assert flat_tops(wav) < 0.001 and full_scale(wav) == 0.0
    assert flat_tops(hard) == pytest.approx(np.mean(np.abs(hard) >= 0.3), abs=0.02)
    assert flat_tops(0.4 * hard) == flat_tops(hard) > 0.01 and full_scale(hard / 0.3) > 0.01 and full_scale(hard) == 0
    low = np.sin(2 * np.pi * 100 * np.arange(44_100) / 44_100) * 0.5
    assert flat_tops((np.round(low * 32768) / 32768).astype(np.float32)) < 0.001  # a pure low tone is not clipped
    assert flat_tops(np.zeros(100, np.float32)) == 0.0


def test_loudness_is_what_normalising_sets_it_to() -> None:
    wav = voice(2.0, RATE)
    assert measure_loudness(normalize_loudness(wav, RATE, -27.0), RATE) == pytest.approx(-27.0, abs=0.1)
    assert measure_loudness(np.zeros(RATE, np.float32), RATE) is None


def row(name: str, **figures: Any) -> dict[str, Any]:
    plain = {
        "id": name, "speaker": "s", "language": "en-us", "sample_rate": 44_100, "seconds": 1.0, "clipped": 0.0,
        "flat_tops": 0.0, "lufs": -25.0, "snr_db": 30.0, "bandwidth_hz": 20_000.0, "content_rate": 44_100,
        "dnsmos": None, "samples": name, "characters_per_second": 10.0, "language_probability": None,
    }  # fmt: skip
    return plain | figures


BAD = {
    "too_short": ({"min_seconds": 1.5}, {}),
    "too_long": ({"max_seconds": 0.9}, {}),
    "clipped": ({"max_clipped": 0.1}, {"clipped": 0.2}),
    "flat_tops": ({"max_flat_tops": 0.1}, {"flat_tops": 0.2}),
    "quiet": ({"min_lufs": -40.0}, {"lufs": -50.0}),
    "noisy": ({"min_snr_db": 10.0}, {"snr_db": 9.0}),
    "bandwidth": ({"min_bandwidth_hz": 5000.0}, {"bandwidth_hz": 4000.0, "sample_rate": 8_000, "content_rate": 8_000}),
    "upsampled": ({"min_bandwidth_hz": 5000.0}, {"bandwidth_hz": 4000.0, "content_rate": 8_000}),
    "dnsmos": ({"min_dnsmos": 3.0}, {"dnsmos": 2.5}),
    "language": ({"min_language_probability": 0.5}, {"language_probability": 0.4}),
    "silent": ({}, {"lufs": None}),
}


@pytest.mark.parametrize("rule", BAD)
def test_each_gate_drops_what_breaks_it_and_nothing_when_it_is_off(rule: str) -> None:
    limits, figures = BAD[rule]
    off = dict.fromkeys(("min_seconds", "max_seconds", "max_clipped", "max_flat_tops"))
    ((name, (found, value, threshold)),) = faults([row("bad", **figures)], QualityConfig(**(off | limits))).items()
    assert (name, found) == ("bad", rule) and value and threshold
    if limits:
        assert not faults([row("bad", **figures)], QualityConfig(**off))
    if rule == "upsampled":
        assert value == "8 kHz content in 44.1 kHz" and threshold == "5000 Hz"


def test_rates_are_judged_within_speaker_and_language() -> None:
    config = QualityConfig(rate_iqr=2.0)
    rng = np.random.default_rng(0)
    rates = 10 * np.exp(0.1 * rng.standard_normal(60))
    slow = [row(f"a{i}", speaker="a", characters_per_second=r) for i, r in enumerate(rates)]
    fast = [row(f"b{i}", speaker="b", characters_per_second=3 * r) for i, r in enumerate(rates)]
    few = [row(f"c{i}", speaker="c", characters_per_second=r) for i, r in enumerate((1.0, 10.0, 90.0))]
    odd = [row("odd", speaker="a", characters_per_second=30.0), row("dead", speaker="b", characters_per_second=8.0)]
    found = faults(slow + fast + few + odd, config)
    assert set(found) == {"odd", "dead"} and found["odd"][0] == "rate" and "for a" in found["odd"][2]
    assert not faults(slow + fast + few + odd, QualityConfig())


def test_of_takes_of_one_sound_the_widest_is_kept_and_chains_do_not_lose_a_sound() -> None:
    rows = {
        "a": row("a", bandwidth_hz=4000.0), "b": row("b"), "c": row("c", sample_rate=48_000), "d": row("d"),
        "e": row("e"), "f": row("f"),
    }  # fmt: skip
    pairs = [("a", "b", 0.9), ("a", "c", 0.95), ("b", "c", 0.99), ("d", "e", 0.9), ("e", "f", 0.9)]
    assert {name: first for name, (first, _) in chosen(pairs, rows).items()} == {"a": "c", "b": "c", "e": "d"}
    same = [row("x", samples="1"), row("y", samples="1"), row("z", samples="2")]
    assert exact_duplicates(same[::-1]) == {"y": "x"}
