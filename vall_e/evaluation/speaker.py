"""Whose voice it is: speaker embeddings by Resemblyzer (GE2E, 1710.10467), whose weights are in its wheel.

Dimensions: N clips, S speakers, 256 the width of an embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import soxr

EMBEDDING = 256
_RATE = 16_000
_TARGET_DBFS = -30.0
_FRAMES = 160  # one partial window of the network: 1.6 s
_WINDOW = _FRAMES * _RATE // 100
_RATE_OF_PARTIALS = 1.3
_MIN_COVERAGE = 0.75
_BATCH = 64


class SpeakerEncoder:
    """Embeds clips of any length and sample rate.

    The network hears windows of 1.6 s. A shorter clip is repeated until it fills one: silence behind
    half a second of speech would move the embedding towards silence. Resemblyzer's own voice activity
    detection is left out, for it throws away most of a single short word.
    """

    def __init__(self, device: str = "cpu") -> None:
        with warnings.catch_warnings():
            # It imports a scipy module by its old name and pkg_resources through webrtcvad.
            warnings.simplefilter("ignore")
            from resemblyzer import VoiceEncoder

        self._model = VoiceEncoder(device, verbose=False).eval()

    def embed(self, clips: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
        """Embeddings of ``clips``, float32 [N, 256] of length 1.

        Args:
            clips: (wav float32 [samples] in -1..1, sample rate in Hz). A silent or empty clip has an
                embedding too; it is that of silence.
        """
        windows: list[np.ndarray] = []
        owners: list[int] = []
        for index, (wav, rate) in enumerate(clips):
            for window in _windows(_prepare(wav, rate), self._model):
                windows.append(window)
                owners.append(index)
        if not windows:
            return np.zeros((0, EMBEDDING), dtype=np.float32)
        parts = np.concatenate([self._forward(windows[i : i + _BATCH]) for i in range(0, len(windows), _BATCH)])
        sums = np.zeros((len(clips), EMBEDDING), dtype=np.float64)
        np.add.at(sums, owners, parts)
        return normalize(sums)

    def _forward(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self._model(torch.from_numpy(np.stack(windows)).to(self._model.device)).cpu().numpy()


def _prepare(wav: np.ndarray, rate: int) -> np.ndarray:
    """Mono clip at 16 kHz, at least one window long, raised to the loudness that the network was trained on."""
    wav = np.nan_to_num(np.asarray(wav, dtype=np.float32).reshape(-1))
    if rate != _RATE and wav.size:
        wav = soxr.resample(wav, rate, _RATE)
    if not wav.size:
        wav = np.zeros(1, dtype=np.float32)
    if wav.size < _WINDOW:
        wav = np.tile(wav, -(-_WINDOW // wav.size))[:_WINDOW]
    rms = float(np.sqrt(np.mean(np.square(wav, dtype=np.float64))))
    if rms > 1e-6:
        wav = wav * max(1.0, 10 ** (_TARGET_DBFS / 20) / rms)
    return wav.astype(np.float32)


def _windows(wav: np.ndarray, model: object) -> list[np.ndarray]:
    """Mel windows [160, 40] that overlap as in ``VoiceEncoder.embed_utterance``."""
    from resemblyzer.audio import wav_to_mel_spectrogram

    wav_slices, mel_slices = model.compute_partial_slices(wav.size, _RATE_OF_PARTIALS, _MIN_COVERAGE)
    end = wav_slices[-1].stop
    mel = wav_to_mel_spectrogram(np.pad(wav, (0, max(0, end - wav.size))))
    return [mel[part] for part in mel_slices]


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Rows of ``vectors`` [..., D] scaled to length 1, float32; a row of zeros stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors, dtype=np.float64), where=norms > 0).astype(np.float32)


def centroids(embeddings: np.ndarray, speakers: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Mean voice of every speaker.

    Args:
        embeddings: [N, 256] of length 1.
        speakers: N names.

    Returns:
        The S names in order and their centroids, float32 [S, 256] of length 1.
    """
    names = sorted(set(speakers))
    owner = np.asarray(speakers)
    return names, normalize(np.stack([embeddings[owner == name].mean(axis=0, dtype=np.float64) for name in names]))


def nearest(embeddings: np.ndarray, names: Sequence[str], means: np.ndarray) -> list[str]:
    """For each embedding [N, 256] the name whose centroid ([S, 256]) has the highest cosine; ties go to the first."""
    return [names[i] for i in np.argmax(embeddings @ means.T, axis=1)]


def similarity_to_others(
    embeddings: np.ndarray, speakers: Sequence[str], names: Sequence[str], means: np.ndarray
) -> np.ndarray:
    """Mean cosine of each embedding [N, 256] to the centroids of all speakers but its own, float [N].

    NaN where there is no other speaker.
    """
    cosines = (embeddings @ means.T).astype(np.float64)
    column: Mapping[str, int] = {name: i for i, name in enumerate(names)}
    own = np.zeros_like(cosines, dtype=bool)
    for row, speaker in enumerate(speakers):
        if speaker in column:
            own[row, column[speaker]] = True
    others = (~own).sum(axis=1)
    total = np.where(own, 0.0, cosines).sum(axis=1)
    return np.divide(total, others, out=np.full(len(cosines), np.nan), where=others > 0)
