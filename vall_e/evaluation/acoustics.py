"""How near speech is to a recording of the same words: mel-cepstral distance, pitch and duration.

The distance is the mel-cepstral distortion of Kubichek (1993, "Mel-cepstral distance measure for objective speech
quality assessment", equation 3), over the path of dynamic time warping:

    MCD = mean over the path of  10 / ln 10 · sqrt(2 · sum_{m=1..M} (c_m - c'_m)²)   dB

with ln |A(w)| = c_0 + sum_m c_m cos(m w) on the mel scale, so that it is the RMS difference of two smoothed mel spectra
in dB, gain apart. The cepstra are cosine transforms of mel filter banks, not those of WORLD or SPTK: figures
compare within this house, not with a paper's.

Pitch is Praat's and not librosa's pYIN, which calls generalised ufuncs from numba's cache: two processes that fill
it at once can leave halves that do not fit, and every later call of them is a segmentation fault (numba issue 10128).

Dimensions: N samples, T frames (100 a second), K mel bands, M cepstral coefficients, P steps of a path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vall_e.audio import resample, trim_silence

RATE = 16_000
HOP = 160
BANDS, ORDER = 80, 24
_WINDOW = 512
_FLOOR_DB = 60.0  # below the loudest band: what is weaker is silence, whatever its level
_PITCH = (55.0, 550.0)  # Hz
_VOICED = 0.5  # least height of an autocorrelation's peak, 1 at lag 0
_FEWEST = 10  # frames of a pitch statistic


@dataclass(frozen=True)
class Sound:
    """What comparisons need of a wave.

    Attributes:
        seconds: duration without the silence at its ends.
        cepstra: float64 [T, M], without c_0.
        f0: Hz, float64 [T], NaN where unvoiced.
    """

    seconds: float
    cepstra: np.ndarray
    f0: np.ndarray


@dataclass(frozen=True)
class Pitch:
    """``mean``: Hz, geometric; ``spread``: standard deviation in semitones; ``voiced``: share of the frames."""

    mean: float | None
    spread: float | None
    voiced: float


@dataclass(frozen=True)
class Comparison:
    """Speech against a recording: ``mcd`` in dB, ``duration_ratio`` 1 for the same pace, ``f0_rmse`` in semitones and
    ``f0_correlation`` of log-F0 over aligned frames that are voiced in both; None where too few are."""

    mcd: float
    duration_ratio: float
    f0_rmse: float | None
    f0_correlation: float | None


def analyse(wav: np.ndarray, rate: int) -> Sound | None:
    """``wav`` float [N] at ``rate`` Hz; None for silence and for less than five frames."""
    wav = resample(np.nan_to_num(np.asarray(wav, dtype=np.float32).reshape(-1)), rate, RATE)
    wav = trim_silence(wav, RATE)
    if wav.size < 5 * HOP or np.abs(wav).max() < 1e-4:
        return None
    cepstra = mel_cepstra(wav)
    return Sound(wav.size / RATE, cepstra, track_pitch(wav, len(cepstra)))


def mel_cepstra(wav: np.ndarray) -> np.ndarray:
    """c_1 to c_24 of ``wav`` float [N] at 16 kHz: float64 [T, M]."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=wav, sr=RATE, n_fft=_WINDOW, win_length=400, hop_length=HOP, n_mels=BANDS, fmin=60.0, fmax=7600.0
    )
    floor = max(float(power.max()) * 10.0 ** (-_FLOOR_DB / 10.0), 1e-20)
    return cepstra_of(0.5 * np.log(np.maximum(power, floor)).T)


def cepstra_of(log_amplitude: np.ndarray) -> np.ndarray:
    """Cosine coefficients 1 to 24 of log-amplitudes [T, K]: float64 [T, M]."""
    from scipy.fft import dct

    bands = log_amplitude.shape[1]
    return dct(np.asarray(log_amplitude, dtype=np.float64), type=2, axis=1)[:, 1 : ORDER + 1] / bands


def track_pitch(wav: np.ndarray, frames: int) -> np.ndarray:
    """F0 of ``wav`` float [N] at 16 kHz in Hz, NaN where unvoiced: float64 [frames], one every ``HOP`` samples from 0.

    By Praat: peaks of the autocorrelation, one path through them (Boersma, 1993, "Accurate short-term analysis of the
    fundamental frequency and the harmonics-to-noise ratio of a sampled sound").
    """
    import parselmouth

    found = np.full(frames, np.nan)
    if wav.size * _PITCH[0] <= 3 * RATE:  # Praat's window: three periods of the lowest pitch
        return found
    pitch = parselmouth.Sound(wav.astype(np.float64), RATE).to_pitch_ac(
        time_step=HOP / RATE, pitch_floor=_PITCH[0], pitch_ceiling=_PITCH[1], voicing_threshold=_VOICED
    )
    f0, places = pitch.selected_array["frequency"], np.round(pitch.xs() * RATE / HOP).astype(int)
    voiced = (f0 > 0) & (places < frames)
    found[places[voiced]] = f0[voiced]
    return found


def pitch_of(sound: Sound) -> Pitch:
    """Statistics of the sound's F0."""
    voiced = sound.f0[~np.isnan(sound.f0)]
    share = voiced.size / sound.f0.size
    if voiced.size < _FEWEST:
        return Pitch(None, None, share)
    logs = np.log2(voiced)
    return Pitch(float(2.0 ** logs.mean()), float(12.0 * logs.std()), share)


def warp(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The path of least summed distance between cepstra [T, M] and [U, M] (Sakoe & Chiba, 1978): int [P, 2]."""
    from librosa.sequence import dtw

    _, path = dtw(first.T, second.T)
    return path[::-1]


def mel_cepstral_distance(first: np.ndarray, second: np.ndarray, path: np.ndarray) -> float:
    """MCD in dB of cepstra [T, M] and [U, M] along ``path`` [P, 2]."""
    difference = first[path[:, 0]] - second[path[:, 1]]
    return float(10.0 / math.log(10.0) * np.sqrt(2.0 * np.square(difference).sum(axis=1)).mean())


def compare(sound: Sound, recording: Sound) -> Comparison:
    """``sound`` against a ``recording`` of the same words."""
    path = warp(sound.cepstra, recording.cepstra)
    rmse = correlation = None
    pairs = np.log2(np.stack([sound.f0[path[:, 0]], recording.f0[path[:, 1]]]))
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    if pairs.shape[1] >= _FEWEST:
        rmse = float(12.0 * np.sqrt(np.square(pairs[0] - pairs[1]).mean()))
        if pairs.std(axis=1).min() > 1e-6:
            correlation = float(np.corrcoef(pairs)[0, 1])
    distance = mel_cepstral_distance(sound.cepstra, recording.cepstra, path)
    return Comparison(distance, sound.seconds / recording.seconds, rmse, correlation)
