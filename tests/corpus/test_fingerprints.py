"""One take, coded, resampled or at another level, is found again; other takes of a word are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.sounds import write_ffmpeg
from vall_e.audio import load, resample, trim_silence
from vall_e.corpus import demo, fingerprints
from vall_e.corpus.fingerprints import equal_bits, fingerprint, least_equal_bits, near_duplicates
from vall_e.preparation import QualityConfig

RATE = 16_000
COUNT = 24


def take(word: int, seed: int) -> np.ndarray:
    """A "word" of three gliding sounds: the same glides at every take, at another pace and pitch, float32 [N]."""
    way, rng = np.random.default_rng(word), np.random.default_rng(1000 * word + seed)
    parts = []
    for _ in range(3):
        count = int(rng.uniform(0.09, 0.16) * RATE)
        low, high = way.uniform(300, 2500, 2) * rng.uniform(0.9, 1.1)
        pitch = np.cumsum(np.linspace(low, high, count)) / RATE
        hum = np.cumsum(np.full(count, rng.uniform(90, 140))) / RATE
        parts.append(np.sin(2 * np.pi * pitch) * (0.6 + 0.4 * np.sin(2 * np.pi * hum)) * np.hanning(count))
    wav = 0.3 * np.concatenate(parts) + 1e-3 * rng.standard_normal(sum(map(len, parts)))
    return wav.astype(np.float32)


def coded(wav: np.ndarray, kind: str) -> tuple[np.ndarray, int]:
    file = io.BytesIO()
    soundfile.write(file, wav, RATE, format=kind)
    file.seek(0)
    return soundfile.read(file, dtype="float32")


COPIES: dict[str, Callable[[np.ndarray], tuple[np.ndarray, int]]] = {
    "mp3": lambda wav: coded(wav, "MP3"),
    "ogg": lambda wav: coded(wav, "OGG"),
    "44.1 kHz": lambda wav: (resample(wav, RATE, 44_100), 44_100),
    "8 kHz": lambda wav: (resample(wav, RATE, 8_000), 8_000),
    "quieter": lambda wav: (np.round(wav * 0.1 * 32767) / 32767, RATE),
    "late": lambda wav: (np.concatenate([np.zeros(333, np.float32), wav]), RATE),
}


@pytest.fixture(scope="module")
def takes() -> list[np.ndarray]:
    return [take(word, seed) for word in range(4) for seed in range(COUNT // 4)]


def prints(waves: list[tuple[np.ndarray, int]]) -> list[np.ndarray]:
    return [fingerprint(trim_silence(wav, rate), rate) for wav, rate in waves]


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_found_and_nothing_else(takes: list[np.ndarray], how: str) -> None:
    copies = [COPIES[how](wav) for wav in takes]
    found = near_duplicates(prints([(wav, RATE) for wav in takes] + copies), 0.8)
    pairs = {(one, other) for one, other, _ in found}
    assert pairs <= {(i, COUNT + i) for i in range(COUNT)}  # no two takes, and no take with another one's copy
    assert len(pairs) >= 0.9 * COUNT
    assert all(0.8 <= bits <= 1.0 for *_, bits in found)


def test_takes_of_a_word_are_no_duplicates(takes: list[np.ndarray]) -> None:
    assert near_duplicates(prints([(wav, RATE) for wav in takes]), 0.8) == []


def test_the_same_pairs_when_few_words_are_in_memory(takes: list[np.ndarray], monkeypatch) -> None:
    found = prints([(wav, RATE) for wav in takes] + [COPIES["mp3"](wav) for wav in takes])
    expected = near_duplicates(found, 0.8)
    monkeypatch.setattr(fingerprints, "_WORDS", 100)
    assert near_duplicates(found, 0.8) == expected != []


def test_bits_of_aligned_and_of_unlike_fingerprints() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(1, 2**32, 200, dtype=np.uint32) for _ in range(2))
    assert equal_bits(one, one, 0) == 1.0
    assert equal_bits(one[5:], one, 5) == 1.0
    assert equal_bits(one, other, 0) == pytest.approx(0.5, abs=0.03)
    assert equal_bits(one, one[:100], 0) == 0.0  # a part is another utterance
    assert equal_bits(one, one, 500) == equal_bits(one, one[:0], 0) == 0.0
    assert near_duplicates([], 0.8) == near_duplicates([one[:0], one[:0]], 0.8) == []


def test_the_worst_quarter_of_a_second_decides() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(1, 2**32, 200, dtype=np.uint32) for _ in range(2))
    word, noisy = one.copy(), one ^ (np.uint32(1) << rng.integers(0, 32, 200, dtype=np.uint32))
    word[80:110] = other[80:110]
    assert equal_bits(one, word, 0) > 0.9 > 0.6 > least_equal_bits(one, word, 0)
    assert equal_bits(one, noisy, 0) == least_equal_bits(one, noisy, 0) == 31 / 32
    assert least_equal_bits(one[:9], one[:9], 0) == least_equal_bits(one[5:], one, 5) == 1.0
    assert least_equal_bits(one, one[:100], 0) == 0.0


def at_rate(folder: Path, wav: np.ndarray, rate: int, kind: str) -> tuple[np.ndarray, int]:
    """``wav`` coded at a low bit rate: mp3 or Opus of 24 kbit/s, Vorbis of its lowest quality."""
    if kind == "vorbis":
        file = io.BytesIO()
        with soundfile.SoundFile(file, "w", rate, 1, "VORBIS", format="OGG", compression_level=1.0) as out:
            for start in range(0, len(wav), rate):
                out.write(wav[start : start + rate])
        file.seek(0)
        return soundfile.read(file, dtype="float32")
    ending, codec, fit = {"mp3": (".mp3", "libmp3lame", max(rate, RATE)), "opus": (".opus", "libopus", 48_000)}[kind]
    return load(write_ffmpeg(folder / f"coded{ending}", resample(wav, rate, fit), codec, fit, bit_rate=24_000))


@pytest.fixture(scope="module")
def spoken() -> list[tuple[np.ndarray, int]]:
    """Takes of ten digits by one person, five each, and three sentences by another."""
    root = Path("../shared/data")
    files = [root / f"digits/theo/{word}_theo_{n}.wav" for word in range(10) for n in range(5, 10)]
    files += sorted(root.glob("ljspeech/wavs/*.flac"))[:3]
    if not all(file.is_file() for file in files) or len(files) < 53:
        pytest.skip("../shared/data is not on this machine")
    return [load(file) for file in files]


@pytest.mark.parametrize("kind", ["mp3", "opus", "vorbis"])
def test_people_coded_at_low_rates_are_found_by_default_and_their_other_takes_are_not(
    spoken: list[tuple[np.ndarray, int]], kind: str, tmp_path: Path
) -> None:
    chosen = [*range(0, 50, 5), 50, 51, 52]
    copies = [at_rate(tmp_path, *spoken[index], kind) for index in chosen]
    found = near_duplicates(prints(spoken + copies), QualityConfig().near_duplicates)
    expected = {(index, len(spoken) + place) for place, index in enumerate(chosen)}
    assert {(one, other) for one, other, _ in found} <= expected
    assert len(found) >= len(expected) - 1  # a word of 0.3 s may be spoiled


def test_alike_sentences_of_a_synthesiser_are_no_copies_and_their_codes_are(tmp_path: Path) -> None:
    voice = demo.Voice(name="m1", voice="en-us+m1", pitch=45, rate=150)
    said = [
        f"{place} {number}." for place in ("Turn right at table", "Open window") for number in ("two", "three", "nine")
    ]
    waves = [demo.speak(voice, text) for text in said]
    waves = [(np.asarray(wav, np.float32), rate) for wav, rate in waves]
    originals = prints(waves)
    pairs = [(one, other) for one in range(6) for other in range(one)]
    alike = max(equal_bits(originals[a], originals[b], shift) for a, b in pairs for shift in range(-15, 16))
    default = QualityConfig().near_duplicates
    assert alike > default, "sentences that a mean over all bits would take for copies"
    assert near_duplicates(originals, default) == []
    copies = prints([at_rate(tmp_path, *wave, "mp3") for wave in waves])
    found = near_duplicates(originals + copies, default)
    assert [(one, other) for one, other, _ in found] == [(index, 6 + index) for index in range(6)]


def test_silence_and_scraps_have_fingerprints_too() -> None:
    assert not fingerprint(np.zeros(1600, np.float32), RATE).any()
    assert len(fingerprint(np.ones(3, np.float32), RATE)) >= 1
