"""Waveforms in and out of files: read anything, one channel, any rate; level, trim, save.

Dimensions: N samples. A waveform is float32 [N], one channel, nominally in -1..1. Rates are changed by soxr.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile
import soxr

from vall_e.decoders import AudioError, channel, read_header

if TYPE_CHECKING:
    from vall_e.preparation import EncodeConfig

AS_READ = 32768.0  # see ``to_pcm``


@dataclass(frozen=True)
class AudioInfo:
    """Of a recording: duration in seconds, rate in Hz, number of channels."""

    seconds: float
    sample_rate: int
    channels: int


def probe(path: str | Path) -> AudioInfo:
    """Duration, rate and channels, out of the header where that says them.

    Raises:
        AudioError: there is no such file, or it is not a recording.
    """
    header = read_header(path)
    frames = sum(map(len, channel(header))) if header.frames is None else header.frames
    return AudioInfo(frames / header.sample_rate, header.sample_rate, header.channels)


def load(
    path: str | Path, sample_rate: int | None = None, start: float = 0.0, end: float | None = None
) -> tuple[np.ndarray, int]:
    """Read a recording, or a part of it, as one channel (the mean of its channels).

    Only the part is decoded (see ``decoders.channel``), and it is resampled by itself.

    Args:
        path: wav, flac, ogg, opus, mp3, m4a and others, of any rate, width and number of channels.
        sample_rate: Hz to resample to; without it the recording's own.
        start: seconds from the beginning of the recording.
        end: seconds; behind the end of the recording, or None: up to there.

    Returns:
        Waveform float32 [N], N > 0 and finite, and its rate in Hz.

    Raises:
        AudioError: the file is missing, empty, not audio, cut off, or holds no or non-finite samples there.
        ValueError: ``start`` is below 0, or ``end`` not behind it.
    """
    if start < 0 or (end is not None and end <= start):
        raise ValueError(f"{path}: a part begins at 0 s or later and ends behind that, not {start} s to {end} s")
    header = read_header(path)
    rate = header.sample_rate
    parts = list(channel(header, round(start * rate), None if end is None else round(end * rate)))
    if not parts:
        where = "the recording has no samples" + (f" from {start:g} s on" if start else "")
        raise AudioError(path, where, "record it again, or remove the file", "empty")
    wav = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if sample_rate is not None and sample_rate != rate:
        wav = resample(wav, rate, sample_rate)
        rate = sample_rate
        if wav.shape[0] == 0:
            raise AudioError(path, "too short to resample", "record it again, or remove the file", "empty")
    return wav, rate


def save_wav(path: str | Path, wav: np.ndarray, sample_rate: int) -> Path:
    """Write 16-bit PCM under a temporary name and rename it, so that a file that exists is whole.

    Args:
        wav: float [N]; values beyond ±1 are clipped.
        sample_rate: Hz.

    Raises:
        ValueError: the waveform is not one-dimensional, or has NaN or infinite samples.
    """
    return _save(path, wav, sample_rate, to_pcm)


def save_like(path: str | Path, wav: np.ndarray, source: str | Path) -> Path:
    """As ``save_wav``, at the rate of the recording ``source``, with samples that were not changed since ``load`` just
    as they are there: 16-bit PCM for 16-bit PCM, else 32-bit float."""
    header = read_header(source)
    rate = header.sample_rate
    if header.coding != "PCM_16":
        return _save(path, wav, rate, lambda wav: wav.astype(np.float32))
    return _save(path, wav, rate, lambda wav: to_pcm(wav, AS_READ))


def _save(path: str | Path, wav: np.ndarray, sample_rate: int, coded: Callable[[np.ndarray], np.ndarray]) -> Path:
    path = Path(path)
    samples = coded(_sound(wav, path))
    subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each writer has a name of its own, so that two processes never share a half-written file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        soundfile.write(str(temporary), samples, sample_rate, subtype=subtype, format="WAV")
        os.replace(temporary, path)
    except soundfile.LibsndfileError as error:  # a RuntimeError, which would be taken for a mistake of ours
        raise OSError(f"{path} cannot be written: {error.error_string}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _sound(wav: np.ndarray, name: str | Path) -> np.ndarray:
    """``wav`` [N] as it is. Raises ValueError naming what cannot be written."""
    wav = np.asarray(wav)
    if wav.ndim != 1:
        raise ValueError(f"{name}: expected one channel of samples [N], got shape {wav.shape}")
    if not np.isfinite(wav).all():
        raise ValueError(f"{name}: the waveform has NaN or infinite samples and was not saved")
    return wav


def to_pcm(wav: np.ndarray, full: float = 32767.0) -> np.ndarray:
    """``wav`` float [N], clipped to ±1, as int16 [N] (little endian).

    Args:
        full: what 1 becomes; ``AS_READ`` gives samples of 16 bits that ``load`` read just as they were.
    """
    return np.clip(np.round(wav * full), -full, 32767.0).astype("<i2")


def play_to(stream: BinaryIO | RawIOBase, pieces: Iterable[np.ndarray]) -> int:
    """Write sound as it comes: raw 16-bit PCM, little-endian, one channel, without a header.

    A piece is asked for when the one before has been taken: a slow reader slows down what makes the sound. When the
    reader leaves, or anything else fails, ``pieces`` is closed where it can be, so that nothing is made for nobody.

    Args:
        stream: binary and open for writing, such as ``sys.stdout.buffer``.
        pieces: waveforms float [n]; values beyond ±1 are clipped.

    Returns:
        samples written.

    Raises:
        BrokenPipeError: the reader left.
        ValueError: a piece is not one-dimensional, or has NaN or infinite samples.
    """
    written = 0
    try:
        for piece in pieces:
            rest = memoryview(to_pcm(_sound(piece, "the stream")).tobytes())
            written += len(rest) // 2
            while rest:  # an unbuffered stream may take a part
                rest = rest[stream.write(rest) or 0 :]
            stream.flush()
    finally:
        if isinstance(pieces, Generator):
            pieces.close()
    return written


def resample(wav: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """``wav`` float [N] at ``from_rate`` Hz → float32 [N · to / from] at ``to_rate`` Hz (soxr, high quality)."""
    if from_rate == to_rate:
        return np.asarray(wav, dtype=np.float32)
    return soxr.resample(np.asarray(wav, dtype=np.float32), from_rate, to_rate).astype(np.float32, copy=False)


def measure_loudness(wav: np.ndarray, rate: int) -> float | None:
    """Loudness of ``wav`` float32 [N] in LUFS (ITU-R BS.1770, pyloudnorm), None for silence.

    A clip shorter than the meter's 400 ms block is measured repeated.
    """
    import pyloudnorm

    if np.abs(wav).max(initial=0.0) < 1e-6:
        return None
    block = int(0.4 * rate) + 1
    measured = np.tile(wav, -(-block // len(wav))) if len(wav) < block else wav
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loudness = pyloudnorm.Meter(rate).integrated_loudness(measured.astype(np.float64))
    return float(loudness) if np.isfinite(loudness) else None


def normalize_loudness(wav: np.ndarray, rate: int, lufs: float) -> np.ndarray:
    """Bring ``wav`` float [N] to ``lufs`` (see ``measure_loudness``), without clipping; silence stays as it is.

    Where the gain would take a peak beyond 0.99, the gain is smaller.
    """
    wav = np.asarray(wav, dtype=np.float32)
    loudness = measure_loudness(wav, rate)
    if loudness is None:
        return wav
    gain = min(10.0 ** ((lufs - loudness) / 20.0), 0.99 / float(np.abs(wav).max()))
    return (wav * np.float32(gain)).astype(np.float32)


def sound_bounds(wav: np.ndarray, rate: int, db: float = 40.0, margin_seconds: float = 0.05) -> tuple[int, int]:
    """Where sound begins and ends: what ``trim_silence`` keeps, as samples [first, last)."""
    wav = np.asarray(wav, dtype=np.float32)
    frame = max(1, int(0.02 * rate))
    count = len(wav) // frame
    if count < 2:
        return 0, len(wav)
    rms = np.sqrt((wav[: count * frame].reshape(count, frame).astype(np.float64) ** 2).mean(axis=1))
    if rms.max() < 1e-6:
        return 0, len(wav)
    loud = np.flatnonzero(rms >= rms.max() * 10.0 ** (-db / 20.0))
    margin = int(margin_seconds * rate)
    # The samples behind the last whole frame belong to it.
    last = len(wav) if loud[-1] == count - 1 else (int(loud[-1]) + 1) * frame
    return max(0, int(loud[0]) * frame - margin), min(len(wav), last + margin)


def trim_silence(wav: np.ndarray, rate: int, db: float = 40.0, margin_seconds: float = 0.05) -> np.ndarray:
    """Cut the edges that are more than ``db`` decibels below the loudest 20 ms, but for a margin.

    Args:
        wav: float [N].
        rate: Hz.
        db: how far below the loudest frame's RMS counts as silence, above 0.
        margin_seconds: what is kept on both sides of the speech.

    Returns:
        A view of ``wav``, never empty where ``wav`` is not; silence throughout is returned whole.
    """
    wav = np.asarray(wav, dtype=np.float32)
    first, last = sound_bounds(wav, rate, db, margin_seconds)
    return wav[first:last]


def trim_and_level(wav: np.ndarray, rate: int, settings: EncodeConfig) -> np.ndarray:
    """A recording of a voice as every codec is given it, float32: trimmed and at the loudness that ``settings`` say."""
    if settings.trim_db is not None:
        wav = trim_silence(wav, rate, settings.trim_db, settings.trim_margin_seconds)
    return level(wav, rate, settings)


def level(wav: np.ndarray, rate: int, settings: EncodeConfig) -> np.ndarray:
    """``wav`` float32 [N] at the loudness that ``settings`` say."""
    return wav if settings.loudness_lufs is None else normalize_loudness(wav, rate, settings.loudness_lufs)


def load_prepared(
    path: str | Path, sample_rate: int, settings: EncodeConfig, start: float = 0.0, end: float | None = None
) -> np.ndarray:
    """An utterance as the encode stage hands it to the codec: at the loudness that is set, float32 [N] at
    ``sample_rate``. Its silence was cut when ``start`` and ``end`` (seconds) were chosen.

    Raises:
        AudioError: the recording cannot be read.
    """
    wav, rate = load(path, start=start, end=end)
    return resample(level(wav, rate, settings), rate, sample_rate)
