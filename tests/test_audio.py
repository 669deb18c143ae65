"""Any recording is read properly or refused with file, reason and remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from vall_e.audio import (
    AudioError,
    load,
    normalize_loudness,
    probe,
    resample,
    save_wav,
    trim_silence,
)

RATE = 16_000


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0, gain: float = 0.3) -> np.ndarray:
    return (gain * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, data: np.ndarray, rate: int = RATE, **kwargs: str) -> Path:
    soundfile.write(str(path), data, rate, **kwargs)
    return path


@pytest.mark.parametrize(("name", "error"), [("a.wav", 1e-4), ("a.flac", 1e-4), ("a.ogg", 0.03), ("a.mp3", 0.05)])
def test_formats_are_read(tmp_path: Path, name: str, error: float) -> None:
    wav, rate = load(write(tmp_path / name, tone()))
    assert rate == RATE and wav.dtype == np.float32 and wav.ndim == 1
    assert abs(len(wav) - RATE) <= 1200
    assert np.abs(wav[1000:15_000] - tone()[1000:15_000]).max() < error


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"),
    [
        (RATE, 2, "PCM_16"),
        (RATE, 6, "PCM_16"),
        (192_000, 1, "PCM_24"),
        (8_000, 1, "PCM_U8"),
        (44_100, 1, "FLOAT"),
    ],
)
def test_every_shape_becomes_one_channel_at_the_wanted_rate(
    tmp_path: Path, rate: int, channels: int, subtype: str
) -> None:
    path = write(tmp_path / "a.wav", np.stack([tone(rate=rate)] * channels, axis=1), rate, subtype=subtype)
    info = probe(path)
    assert (info.sample_rate, info.channels) == (rate, channels) and info.seconds == pytest.approx(1.0)
    wav, got = load(path, RATE)
    assert got == RATE and len(wav) == RATE
    assert np.abs(wav[500:-500] - tone()[500:-500]).max() < 0.02


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.stack([tone(gain=0.4), np.zeros(RATE, np.float32)], axis=1))
    assert np.abs(load(path)[0] - tone(gain=0.2)).max() < 1e-3


def broken(folder: Path, kind: str) -> Path:
    path = folder / "take.wav"
    if kind == "missing":
        return path
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("these are the notes of the recording session, not the recording\n" * 9)
    elif kind == "no samples":
        write(path, np.zeros(0, np.float32))
    elif kind == "nan":
        write(path, np.array([0.0, np.nan, 0.5], np.float32), subtype="FLOAT")
    elif kind == "infinite":
        write(path, np.array([0.0, np.inf, 0.5], np.float32), subtype="FLOAT")
    elif kind == "folder":
        path.mkdir()
    elif kind == "header only":
        path.write_bytes(write(folder / "whole.wav", tone()).read_bytes()[:30])
    else:
        whole = write(folder / f"whole.{kind.split()[1]}", tone(3.0))
        path = folder / f"take.{kind.split()[1]}"
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("missing", "missing"),
        ("empty", "empty"),
        ("text", "unreadable"),
        ("no samples", "empty"),
        ("nan", "not_finite"),
        ("infinite", "not_finite"),
        ("folder", "unreadable"),
        ("header only", "unreadable"),
        ("half wav", "truncated"),
        ("half flac", "unreadable"),
        ("half ogg", "unreadable"),
        ("half mp3", "truncated"),
    ],
)
def test_a_bad_file_is_an_error_with_file_reason_and_remedy(tmp_path: Path, kind: str, rule: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(AudioError) as caught:
        load(path)
    error = caught.value
    assert error.rule == rule
    assert str(path) in str(error) and error.reason in str(error) and error.remedy in str(error)
    assert error.reason and error.remedy


def test_a_streamed_wav_without_its_length_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone())
    raw = bytearray(path.read_bytes())
    at = raw.index(b"data") + 4
    raw[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    assert len(load(path)[0]) == RATE


def test_save_clips_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = save_wav(tmp_path / "new" / "a.wav", np.array([0.0, 0.5, 2.0, -2.0]), RATE)
    wav, rate = load(path)
    assert rate == RATE and np.abs(wav - [0.0, 0.5, 1.0, -1.0]).max() < 1e-4
    assert soundfile.info(str(path)).subtype == "PCM_16"
    assert [p.name for p in path.parent.iterdir()] == ["a.wav"]


def test_what_cannot_be_written_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile's own error is a RuntimeError: nobody catches those where files are written."""

    def failing(*_: object, **__: object) -> None:
        raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(soundfile, "write", failing)
    with pytest.raises(OSError, match=r"a\.wav cannot be written: "):
        save_wav(tmp_path / "a.wav", np.zeros(8), RATE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wav", [np.zeros((2, 9)), np.array([np.nan, 0.0])])
def test_save_refuses_what_is_no_waveform_and_keeps_the_old_file(tmp_path: Path, wav: np.ndarray) -> None:
    path = save_wav(tmp_path / "a.wav", tone(0.1), RATE)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.wav"):
        save_wav(path, wav, RATE)
    assert path.read_bytes() == before


@pytest.mark.parametrize("seconds", [0.05, 0.3, 2.0])
def test_loudness_of_short_and_long_clips(seconds: float) -> None:
    quiet, loud = (normalize_loudness(tone(seconds, gain=gain), RATE, -23.0) for gain in (0.02, 0.8))
    assert np.abs(quiet - loud).max() < 0.01
    # A 440 Hz sine of amplitude A has about 20 log10(A) - 3.7 LUFS.
    assert 20 * np.log10(np.abs(loud).max()) - 3.7 == pytest.approx(-23.0, abs=1.0)


def test_loudness_never_clips_and_leaves_silence() -> None:
    clicks = np.zeros(RATE, np.float32)
    clicks[::4000] = 0.5
    assert np.abs(normalize_loudness(clicks, RATE, -5.0)).max() <= 1.0
    silence = np.zeros(RATE, np.float32)
    assert np.array_equal(normalize_loudness(silence, RATE, -23.0), silence)
    assert normalize_loudness(silence[:0], RATE, -23.0).size == 0


def test_trim_keeps_speech_and_margin() -> None:
    wav = np.concatenate([np.zeros(8000), tone(0.5), np.zeros(12_000)]).astype(np.float32)
    cut = trim_silence(wav, RATE, 40.0, 0.05)
    assert len(cut) == pytest.approx(8000 + 1600, abs=700)
    assert np.square(cut).sum() == pytest.approx(np.square(wav).sum())


@pytest.mark.parametrize("wav", [np.zeros(RATE, np.float32), np.zeros(3, np.float32), tone(0.5)])
def test_trim_returns_silence_and_speech_without_edges_whole(wav: np.ndarray) -> None:
    assert np.array_equal(trim_silence(wav, RATE), wav)


def test_resampling_keeps_pitch() -> None:
    assert np.abs(resample(tone(rate=8000), 8000, RATE)[500:-500] - tone()[500:-500]).max() < 0.01
