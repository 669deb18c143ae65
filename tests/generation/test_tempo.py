"""Sound faster and slower: as long as it should be, at its pitch, the same in any pieces."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from vall_e.generation.tempo import Tempo, stretched, tempo_for

RATE = 16_000


def tone(samples: int, hertz: float = 220.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32)


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("samples", [0, 1, 700, 5_000, 20_001])
def test_it_lasts_what_it_should_in_any_pieces(factor: float, samples: int) -> None:
    wav = tone(samples) * np.linspace(0.1, 1, samples, dtype=np.float32)
    whole = stretched(wav, RATE, factor)
    assert len(whole) == round(samples / factor) and whole.dtype == np.float32
    rng, tempo, cuts = np.random.default_rng(samples), Tempo(RATE, factor), [0]
    while cuts[-1] < samples:
        cuts.append(min(samples, cuts[-1] + int(rng.integers(1, 3_000))))
    pieces = [tempo.push(wav[a:b]) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate([*pieces, tempo.push(wav[:0], last=True)]), whole)
    assert samples < 20_000 or sum(map(len, pieces)) > 0.8 * len(whole), "sound comes while more is drawn"


@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_the_pitch_and_the_loudness_stay(factor: float) -> None:
    out = stretched(tone(2 * RATE), RATE, factor)
    middle = out[len(out) // 4 : 3 * len(out) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * RATE / len(middle) == pytest.approx(220, rel=0.02)
    assert middle.std() == pytest.approx(tone(RATE).std(), rel=0.1)


def test_sound_is_stretched_as_far_as_words_stay_words() -> None:
    assert tempo_for(3.0, 2.0) == 1.5 and tempo_for(3.0, 60.0) == 0.5 and tempo_for(3.0, 0.1) == 2.0
    for wrong in (0.4, 2.5, float("nan")):
        with pytest.raises(ValueError, match=r"between 0.5 and 2, not"):
            Tempo(RATE, wrong)
