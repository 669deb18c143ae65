"""Speaker embeddings and DNSMOS by the real packages, on sounds made here."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from vall_e.evaluation.mos import RATE, WINDOW, Dnsmos, mos_windows
from vall_e.evaluation.speaker import SpeakerEncoder, centroids, nearest, normalize, similarity_to_others


def voice(pitch: float, formant: float, seconds: float = 2.0, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """A buzzing vowel: harmonics of ``pitch`` under one formant, with a slow tremolo."""
    t = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    harmonics = np.arange(1, int(0.45 * rate / pitch))
    weights = np.exp(-(((harmonics * pitch - formant) / 400.0) ** 2)) + 0.02
    wav = sum(
        w * np.sin(2 * np.pi * h * pitch * t + p)
        for h, w, p in zip(harmonics, weights, rng.uniform(0, 6, len(harmonics)), strict=True)
    )
    wav = wav * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    return (0.1 * wav / np.abs(wav).max()).astype(np.float32)


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder()


def test_embeddings_have_length_one_and_tell_voices_apart(encoder: SpeakerEncoder) -> None:
    low, high = voice(100, 500), voice(260, 1500)
    found = encoder.embed([(low, 16_000), (voice(100, 500, seed=1), 16_000), (high, 16_000)])
    assert found.shape == (3, 256) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.1


def test_a_batch_equals_its_clips_alone_and_the_package(encoder: SpeakerEncoder) -> None:
    clips = [(voice(120, 700, s), 16_000) for s in (0.4, 1.6, 4.3)]
    together = encoder.embed(clips)
    for clip, row in zip(clips, together, strict=True):
        np.testing.assert_allclose(encoder.embed([clip])[0], row, atol=1e-5)
    wav = clips[2][0]
    wav = wav * 10 ** (-30 / 20) / np.sqrt((wav**2).mean()) if np.sqrt((wav**2).mean()) < 10 ** (-30 / 20) else wav
    np.testing.assert_allclose(encoder._model.embed_utterance(wav), together[2], atol=1e-4)


def test_rate_and_level_hardly_matter_and_a_short_clip_is_heard_like_a_long_one(encoder: SpeakerEncoder) -> None:
    wav = voice(120, 700, 2.0)
    same, other_rate, quiet, short = encoder.embed(
        [
            (wav, 16_000),
            (soxr.resample(wav, 16_000, 24_000), 24_000),
            (0.01 * wav, 16_000),
            (wav[: 16_000 // 3], 16_000),
        ]
    )
    assert same @ other_rate > 0.99
    assert same @ quiet > 0.99
    assert same @ short > 0.9


def test_silence_and_nothing_are_embedded_too(encoder: SpeakerEncoder) -> None:
    found = encoder.embed(
        [
            (np.zeros(0, np.float32), 16_000),
            (np.zeros(4000, np.float32), 8_000),
            (np.full(9000, np.nan, np.float32), 8_000),
        ]
    )
    assert np.isfinite(found).all()
    assert encoder.embed([]).shape == (0, 256)


def test_centroids_nearest_and_others_against_loops() -> None:
    rng = np.random.default_rng(0)
    who = ["b", "a", "b", "c", "a"]
    vectors = normalize(rng.normal(size=(5, 8)))
    names, means = centroids(vectors, who)
    assert names == ["a", "b", "c"]
    mean_b = (vectors[0] + vectors[2]) / np.linalg.norm(vectors[0] + vectors[2])
    np.testing.assert_allclose(means[1], mean_b, atol=1e-6)
    assert nearest(means, names, means) == names
    others = similarity_to_others(vectors, who, names, means)
    assert others[3] == pytest.approx((vectors[3] @ means[0] + vectors[3] @ means[1]) / 2, abs=1e-6)
    assert np.isnan(similarity_to_others(vectors[:1], ["a"], ["a"], means[:1])).all()


def test_mos_windows_repeat_short_clips_and_slide_over_long_ones() -> None:
    short = np.arange(1000, dtype=np.float32)
    (window,) = mos_windows(short)
    assert window.size == WINDOW
    np.testing.assert_array_equal(window[:3000], np.tile(short, 3))
    long = np.arange(12 * RATE, dtype=np.float32)
    assert [w[0] for w in mos_windows(long)] == [0, RATE, 2 * RATE]


def test_mos_equals_the_package_on_a_whole_window_prefers_clean_speech_and_is_silent_on_silence() -> None:
    from speechmos import dnsmos

    judge = Dnsmos()
    clean = voice(120, 700, 9.5)
    expected = dnsmos.run(clean, RATE)["ovrl_mos"]
    assert judge.score(clean, RATE) == pytest.approx(max(1.0, expected), abs=1e-4)
    assert judge.score(np.zeros(RATE, np.float32), RATE) is None
    assert judge.score(np.zeros(0, np.float32), RATE) is None
    loud = judge.score(5 * np.random.default_rng(0).normal(size=8000).astype(np.float32), 8_000)
    assert loud is not None and 1.0 <= loud <= 5.0
