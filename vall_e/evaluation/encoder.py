"""Whisper's encoder over clips shorter than its 30 s, at a cost by their length.

Dimensions: N samples, B clips in a batch, M mel bands, F mel frames (100 a second), S encoder positions (50 a second).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

RATE = 16_000
FRAME = 160
FRAMES = 3000
PEAK = 0.7
# Frames that the encoder sees of a short clip on a CPU. Its cost grows faster than the window's length.
_WINDOWS = (600, 1000, 1500)


class Encoder:
    """The encoder of a loaded model.

    Args:
        model: whose encoder it is.
        device: cpu or cuda.
        padding: samples of silence before and behind each clip.
    """

    def __init__(self, model: WhisperModel, device: str, padding: int) -> None:
        self._model, self._device, self.padding = model, device, padding

    @property
    def longest(self) -> int:
        """Samples of the longest clip that fits with its padding."""
        return FRAMES * FRAME - 2 * self.padding

    def window(self, samples: int) -> int:
        """Frames that the encoder sees of a clip of so many samples."""
        needed = -(-(samples + 2 * self.padding) // FRAME)
        short = [frames for frames in _WINDOWS if frames >= needed]
        return short[0] if short and self._device == "cpu" else FRAMES

    def lead(self, samples: int, window: int) -> int:
        """Samples of silence before a clip of so many samples in ``window``."""
        return min(self.padding, window * FRAME - samples)

    def encode(self, clips: Sequence[np.ndarray], window: int) -> np.ndarray:
        """Encoder output float32 [B, 1500, D] of clips [N] in the first ``window`` frames of 30 s of silence.

        Whisper wants 30 s and mishears anything shorter. In a window below that the encoder runs on the window alone,
        and its output for silence stands behind it: the decoder finds what it expects, for a fifth of the work.
        """
        encoded = self._run(np.stack([self._features(clip, window) for clip in clips]))
        if window == FRAMES:
            return encoded
        tail = self._silence[:, window // 2 :].repeat(len(encoded), axis=0)
        return np.ascontiguousarray(np.concatenate([encoded, tail], axis=1))

    @cached_property
    def _silence(self) -> np.ndarray:
        """Encoder output float32 [1, 1500, D] of half a second of noise and 29.5 s of silence.

        The noise gives the silence its place in Whisper's mel scale, which is relative to the loudest frame.
        """
        noise = np.random.default_rng(0).uniform(-PEAK, PEAK, RATE // 2).astype(np.float32)
        return self._run(self._features(noise, FRAMES)[None])

    def _run(self, features: np.ndarray) -> np.ndarray:
        encoded = self._model.encode(features)
        if self._device != "cpu":
            import ctranslate2

            encoded = encoded.to_device(ctranslate2.Device.cpu)
        return np.array(encoded, dtype=np.float32)

    def _features(self, wav: np.ndarray, window: int) -> np.ndarray:
        """Log-mel features float32 [M, F] of ``wav`` with silence in front of it and behind it."""
        room = np.zeros(window * FRAME, dtype=np.float32)
        start = self.lead(len(wav), window)
        room[start : start + len(wav)] = wav
        return self._model.feature_extractor(room, padding=FRAME)[:, :window].astype(np.float32)
