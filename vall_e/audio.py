"""Waveforms in and out of files: read anything, one channel, any rate; level, trim, save.

Dimensions: N samples. A waveform is float32 [N], one channel, nominally in -1..1.
Formats: whatever libsndfile reads (wav, flac, ogg, mp3 and more); rates are changed by soxr.
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

if TYPE_CHECKING:
    from vall_e.preparation import EncodeConfig

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")


class AudioError(ValueError):
    """A recording cannot be used. The message names file, reason and remedy.

    ``rule`` is a short name of the reason: missing, empty, unreadable, truncated or not_finite.
    """

    def __init__(self, path: str | Path, reason: str, remedy: str, rule: str = "unreadable") -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.path, self.reason, self.remedy, self.rule = str(path), reason, remedy, rule


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: duration in seconds, rate in Hz, number of channels."""

    seconds: float
    sample_rate: int
    channels: int


def _open(path: Path) -> soundfile.SoundFile:
    if not path.exists():
        raise AudioError(path, "no such file", "check the path", "missing")
    if not path.is_file():
        raise AudioError(path, "not a regular file", "give the path of a recording")
    if path.stat().st_size == 0:
        raise AudioError(path, "the file is empty (0 bytes)", "copy the recording again", "empty")
    try:
        return soundfile.SoundFile(str(path))
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        reason = str(error).split(": ", 1)[-1].strip().rstrip(".")
        raise AudioError(
            path, f"not a readable recording ({reason})", "give wav, flac, ogg or mp3, or convert it with ffmpeg"
        ) from None


def probe(path: str | Path) -> AudioInfo:
    """Duration, rate and channels out of the header, without decoding.

    Raises:
        AudioError: there is no such file, or it is not a recording.
    """
    with _open(Path(path)) as handle:
        rate = handle.samplerate
        return AudioInfo(max(handle.frames, 0) / rate, rate, handle.channels)


def load(path: str | Path, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Read a recording as one channel (the mean of its channels).

    Args:
        path: wav, flac, ogg or mp3, of any rate, width and number of channels.
        sample_rate: Hz to resample to; without it the recording's own.

    Returns:
        Waveform float32 [N], N > 0 and finite, and its rate in Hz.

    Raises:
        AudioError: the file is missing, empty, not audio, cut off, or holds no or non-finite samples.
    """
    path = Path(path)
    with _open(path) as handle:
        announced, rate = handle.frames, handle.samplerate
        try:
            data = handle.read(dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            reason = f"decoding failed ({str(error).strip(' .')})"
            raise AudioError(path, reason, "the file is damaged: copy or record it again") from None
        subtype, container = handle.subtype, handle.format
    if data.shape[0] == 0:
        raise AudioError(path, "the recording has no samples", "record it again, or remove the file", "empty")
    # An mp3's announced length may be an estimate; elsewhere every sample fewer means a file cut off.
    tolerance = announced // 20 + 2400 if container in ("MP3", "MPEG") else 0
    if 0 < announced < 2**62 and data.shape[0] + tolerance < announced:
        raise AudioError(
            path, f"cut off: {data.shape[0]} of {announced} samples", "copy the recording again", "truncated"
        )
    missing = _missing_wav_bytes(path) if container in ("WAV", "WAVEX") else 0
    if missing:
        raise AudioError(
            path, f"cut off: {missing} bytes fewer than its header says", "copy the recording again", "truncated"
        )
    if not np.isfinite(data).all():
        bad = int((~np.isfinite(data)).sum())
        raise AudioError(
            path, f"{bad} samples are NaN or infinite ({subtype})", "export it again as 16-bit PCM", "not_finite"
        )
    wav = data[:, 0] if data.shape[1] == 1 else data.mean(axis=1)
    if sample_rate is not None and sample_rate != rate:
        wav = resample(wav, rate, sample_rate)
        rate = sample_rate
        if wav.shape[0] == 0:
            raise AudioError(path, "too short to resample", "record it again, or remove the file", "empty")
    return np.ascontiguousarray(wav, dtype=np.float32), rate


def _missing_wav_bytes(path: Path) -> int:
    """Bytes that a RIFF file lacks at its end by its own data chunk, 0 where it is whole.

    libsndfile silently shortens a WAV whose data chunk reaches beyond the file. Writers that stream
    leave 0 or 2^32 - 1 as the length, which means "until the end".
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        if handle.read(4) != b"RIFF":
            return 0
        handle.seek(12)
        while len(head := handle.read(8)) == 8:
            length = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                end = handle.tell() + length
                streamed = length in (0, 0x7FFFFFFF, 0x80000000) or length >= 0xFFFFFF00
                return 0 if streamed else max(0, end - size)
            handle.seek(length + length % 2, os.SEEK_CUR)
    return 0


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
    with _open(Path(source)) as handle:
        rate, narrow = handle.samplerate, handle.subtype == "PCM_16"
    if not narrow:
        return _save(path, wav, rate, lambda wav: wav.astype(np.float32))
    return _save(path, wav, rate, lambda wav: np.clip(np.round(wav * 32768.0), -32768, 32767).astype(np.int16))


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


def to_pcm(wav: np.ndarray) -> np.ndarray:
    """``wav`` float [N], clipped to ±1, as int16 [N] (little endian)."""
    return np.round(np.clip(wav, -1.0, 1.0) * 32767.0).astype("<i2")


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


def normalize_loudness(wav: np.ndarray, rate: int, lufs: float) -> np.ndarray:
    """Bring ``wav`` float [N] to ``lufs`` (ITU-R BS.1770, pyloudnorm), without clipping.

    A clip shorter than the meter's 400 ms block is measured repeated; silence is returned as it is.
    Where the gain would take a peak beyond 0.99, the gain is smaller.
    """
    import pyloudnorm

    wav = np.asarray(wav, dtype=np.float32)
    peak = float(np.abs(wav).max(initial=0.0))
    if peak < 1e-6:
        return wav
    block = int(0.4 * rate) + 1
    measured = np.tile(wav, -(-block // len(wav))) if len(wav) < block else wav
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loudness = pyloudnorm.Meter(rate).integrated_loudness(measured.astype(np.float64))
    if not np.isfinite(loudness):
        return wav
    gain = min(10.0 ** ((lufs - loudness) / 20.0), 0.99 / peak)
    return (wav * np.float32(gain)).astype(np.float32)


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
    frame = max(1, int(0.02 * rate))
    count = len(wav) // frame
    if count < 2:
        return wav
    rms = np.sqrt((wav[: count * frame].reshape(count, frame).astype(np.float64) ** 2).mean(axis=1))
    if rms.max() < 1e-6:
        return wav
    loud = np.flatnonzero(rms >= rms.max() * 10.0 ** (-db / 20.0))
    margin = int(margin_seconds * rate)
    start = max(0, int(loud[0]) * frame - margin)
    # The samples behind the last whole frame belong to it.
    last = len(wav) if loud[-1] == count - 1 else (int(loud[-1]) + 1) * frame
    return wav[start : min(len(wav), last + margin)]


def trim_and_level(wav: np.ndarray, rate: int, settings: EncodeConfig) -> np.ndarray:
    """A voice as every codec is given it, float32: trimmed and at the loudness that ``settings`` say."""
    if settings.trim_db is not None:
        wav = trim_silence(wav, rate, settings.trim_db, settings.trim_margin_seconds)
    if settings.loudness_lufs is not None:
        wav = normalize_loudness(wav, rate, settings.loudness_lufs)
    return wav


def load_prepared(path: str | Path, sample_rate: int, settings: EncodeConfig) -> np.ndarray:
    """A recording as the encode stage hands it to the codec: prepared at its own rate, float32 [N] at ``sample_rate``.

    Raises:
        AudioError: the recording cannot be read.
    """
    wav, rate = load(path)
    return resample(trim_and_level(wav, rate, settings), rate, sample_rate)
