"""Mixing waves: a voice with noise or with another voice at a ratio in dB, in a room. Pure functions.

Levels are those of the active stretches: 20 ms frames within 40 dB of the loudest, so that pauses do not count (the
idea of ITU-T P.56). A wave is float32, one channel, nominally in -1..1, and holds some sound.
Dimensions: N samples of the result, M of what is mixed in, K of an impulse response.
"""

from __future__ import annotations

import numpy as np

FRAME_SECONDS = 0.02
ACTIVE_DB = 40.0
PEAK = 0.99
_TINY = 1e-12


def active_rms(wav: np.ndarray, rate: int) -> float:
    """The root mean square of the active stretches of ``wav`` [N] at ``rate`` Hz."""
    power = np.square(wav, dtype=np.float64)
    frame = min(max(1, int(FRAME_SECONDS * rate)), len(wav))
    count = len(wav) // frame
    frames = power[: count * frame].reshape(count, frame).mean(axis=1)
    return float(np.sqrt(frames[frames >= frames.max() * 10 ** (-ACTIVE_DB / 10)].mean()))


def mix(voice: np.ndarray, other: np.ndarray, ratio_db: float, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Put ``other`` [N] under ``voice`` [N], so that the voice is ``ratio_db`` dB above it.

    Returns:
        The mixture float32 [N] and the part of ``other`` in it, float32 [N]: mixture = g * voice + part. The gain g is
        1 where that does not clip, else what brings the peak to 0.99.
    """
    scale = active_rms(voice, rate) / max(active_rms(other, rate), _TINY) * 10 ** (-ratio_db / 20)
    part = scale * other.astype(np.float64)
    mixture = voice + part
    gain = min(1.0, PEAK / max(float(np.abs(mixture).max()), _TINY))
    return (gain * mixture).astype(np.float32), (gain * part).astype(np.float32)


def reverberate(wav: np.ndarray, impulse: np.ndarray, rate: int) -> np.ndarray:
    """``wav`` [N] as heard in the room of ``impulse`` [K], at the same level, float32 [N].

    The direct sound is where it was: the response begins at its peak, and what rings on behind the end is cut.
    """
    direct = impulse[int(np.abs(impulse).argmax()) :]
    size = 1 << (len(wav) + len(direct) - 2).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wav, size) * np.fft.rfft(direct, size), size)[: len(wav)]
    return (wet * (active_rms(wav, rate) / max(active_rms(wet, rate), _TINY))).astype(np.float32)


def looped(noise: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` samples of ``noise`` [M] from a random place on; behind its end it begins anew."""
    piece = _wrapped(noise, int(rng.integers(len(noise))), count)
    return piece if _heard(piece, noise) else _wrapped(noise, int(np.abs(noise).argmax()), count)


def placed(voice: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``voice`` [M] in ``count`` samples: at a random place among silence, or a random piece of a longer one."""
    spare = len(voice) - count
    start = int(rng.integers(abs(spare) + 1))
    if spare <= 0:
        return np.pad(voice, (start, -spare - start))
    piece = voice[start : start + count]
    if not _heard(piece, voice):
        start = min(max(0, int(np.abs(voice).argmax()) - count // 2), spare)
    return voice[start : start + count]


def _wrapped(wav: np.ndarray, start: int, count: int) -> np.ndarray:
    return wav.take(np.arange(start, start + count), mode="wrap")


def _heard(piece: np.ndarray, whole: np.ndarray) -> bool:
    """A piece that is no pause of the whole: at a given ratio a pause would be noise of the recorder, made loud."""
    return bool(np.square(piece).mean() >= np.square(whole).mean() * 10 ** (-ACTIVE_DB / 10))
