"""What is measured of an utterance: level, clipping, noise, bandwidth. Gates (``corpus.gates``) judge the figures.

Dimensions: N samples of a waveform float32 [N], F frames, K bands.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_FULL_SCALE = 0.999
_TOP = 0.9  # of the peak: where a flat top can be
_TOP_PEAK = 0.05  # below it the steps of 16 bits make tops flat that are none
_TOP_SAMPLES = 3
_SPEECH_SHAPE = 0.4  # of the gamma distribution of a voice's amplitudes, in WADA-SNR
_SNR_DB = (-20.0, 100.0)
_HALF_STEP = 2.0**-16  # of 16 bits: what a sample of 0 stands for
_FRAME_SECONDS = 0.04
_BANDS = 96
_SIDE = 6  # bands that are looked at below an edge
_GAP = 4  # bands in which a resampler's filter falls
_WALL_DB = 30.0  # fall at an edge that no voice and no microphone has
_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
_FILTER = 0.95  # share of half the rate that a resampler keeps at least


def full_scale(wav: np.ndarray) -> float:
    """Share of samples at full scale, 0..1."""
    return float(np.mean(np.abs(wav) >= _FULL_SCALE))


def flat_tops(wav: np.ndarray) -> float:
    """Share of samples in runs of three and more equal ones near the peak, 0..1: clipped, whatever the level is now."""
    peak = float(np.abs(wav).max(initial=0.0))
    if peak < _TOP_PEAK:
        return 0.0
    same = (wav[1:] == wav[:-1]) & (np.abs(wav[1:]) >= _TOP * peak)
    edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    lengths = edges[:, 1] - edges[:, 0] + 1
    return float(lengths[lengths >= _TOP_SAMPLES].sum() / len(wav))


def wada_snr(wav: np.ndarray) -> float:
    """Signal to noise in dB, -20 to 100, by the distribution of amplitudes (Kim and Stern, "Robust signal-to-noise
    ratio estimation based on waveform amplitude distribution analysis", Interspeech 2008).

    A voice's amplitudes are gamma-distributed, noise is Gaussian: log E|x| - E log|x| says how much of which there is.
    It needs no pauses, but some seconds of speech to be precise, and takes whatever is not Gaussian for speech.
    """
    size = np.maximum(np.abs(wav.astype(np.float64)), _HALF_STEP)
    levels, statistics = _wada_table()
    return float(np.interp(np.log(size.mean()) - np.log(size).mean(), statistics, levels))


@cache
def _wada_table() -> tuple[np.ndarray, np.ndarray]:
    """SNR in dB and the statistic's value there, over a grid of quantiles of both distributions."""
    from scipy.special import gammaincinv, ndtri

    def middles(count: int) -> np.ndarray:
        return (np.arange(count) + 0.5) / count

    speech = gammaincinv(_SPEECH_SHAPE, middles(2000))
    noise = ndtri(middles(200)) * np.sqrt(np.square(speech).mean())
    levels = np.arange(_SNR_DB[0], _SNR_DB[1] + 1, 2.0)
    statistics = []
    for level in levels:
        size = np.abs(speech[:, None] + noise * 10.0 ** (-level / 20.0))
        statistics.append(np.log(size.mean()) - np.log(size).mean())
    return levels, np.maximum.accumulate(np.asarray(statistics) + 1e-9 * np.arange(len(levels)))


def bandwidth(wav: np.ndarray, rate: int) -> float:
    """Frequency in Hz above which there is nothing: that of the deepest fall of the spectrum within a few per cent of
    the band, where it is one that only a filter makes; else half of ``rate``.

    What counts is the wall and not the level, so a vowel without high sounds has the full band of its recording.
    """
    size = 1 << round(np.log2(_FRAME_SECONDS * rate))
    wav = np.pad(wav, (0, max(0, size - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(wav, size)[:: size // 2]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32))))[:, 1:]
    edges = np.linspace(0, power.shape[1], _BANDS + 1).astype(int)
    loud = np.quantile(np.add.reduceat(power, edges[:-1], axis=1), 0.95, axis=0)
    spectrum = 10.0 * np.log10(loud + 1e-12)
    above = np.maximum.accumulate(spectrum[::-1])[::-1]
    sides = np.median(np.lib.stride_tricks.sliding_window_view(spectrum, _SIDE), axis=1)
    falls = sides[: -_GAP - 1] - above[_SIDE + _GAP :]
    deepest = int(np.argmax(falls))
    if falls[deepest] < _WALL_DB:
        return rate / 2
    last = np.flatnonzero(spectrum >= sides[deepest] - _WALL_DB / 2)[-1]
    return float((last + 1) / _BANDS * rate / 2)


def content_rate(hertz: float, rate: int) -> int:
    """The lowest usual rate in Hz that holds sound up to ``hertz``, ``rate`` where that is no less."""
    return next((usual for usual in _RATES if usual < rate and usual / 2 >= _FILTER * hertz), rate)
