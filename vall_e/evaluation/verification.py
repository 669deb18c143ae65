"""Speaker encoders of speaker verification, by name: the bundled one, WavLM with an x-vector head, ECAPA-TDNN.

Dimensions: N clips, D the width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from vall_e.audio import resample
from vall_e.evaluation.speaker import SpeakerEncoder, normalize

RATE = 16_000
SHORTEST = int(1.6 * RATE)  # what the bundled encoder hears at once; statistics over less say little
WEIGHTS = {"wavlm-sv": "microsoft/wavlm-base-plus-sv", "ecapa": "speechbrain/spkrec-ecapa-voxceleb"}


class EncoderError(ValueError):
    """The encoder cannot be loaded as configured."""


class Encoder(Protocol):
    """Clips (wav float32 [samples] in -1..1, rate in Hz) → embeddings float32 [N, D] of length 1."""

    def embed(self, clips: Sequence[tuple[np.ndarray, int]]) -> np.ndarray: ...


def load_encoder(name: str, weights: str | None = None, device: str = "auto") -> Encoder:
    """The encoder that ``score.speaker_encoder`` names.

    Args:
        name: ``resemblyzer`` (in its wheel), ``wavlm-sv`` or ``ecapa``.
        weights: a folder or a hub's name; without it the published ones (``WEIGHTS``).
        device: auto, cpu or cuda.

    Raises:
        EncoderError: it is not there, or its package is not installed.
    """
    place = device_of(device)
    if name == "resemblyzer":
        return SpeakerEncoder(place)
    return (WavlmEncoder if name == "wavlm-sv" else EcapaEncoder)(weights or WEIGHTS[name], place)


def device_of(wanted: str) -> str:
    """``wanted``, or for ``auto`` cuda where torch finds one, else cpu."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def at_least(wav: np.ndarray, rate: int) -> np.ndarray:
    """``wav`` float [N] at 16 kHz, finite, repeated until it is 1.6 s long: float32."""
    wav = resample(np.nan_to_num(np.asarray(wav, dtype=np.float32).reshape(-1)), rate, RATE)
    wav = wav if wav.size else np.zeros(1, dtype=np.float32)
    return wav if wav.size >= SHORTEST else np.tile(wav, -(-SHORTEST // wav.size))[:SHORTEST]


class WavlmEncoder:
    """WavLM (2110.13900) with the x-vector head of its speaker verification task, by transformers.

    Clips go through one by one: the front end of the base models normalises over time, padding would count.
    """

    def __init__(self, weights: str, device: str = "cpu") -> None:
        from transformers import AutoFeatureExtractor, WavLMForXVector

        try:
            self._features = AutoFeatureExtractor.from_pretrained(weights)
            self._model, report = WavLMForXVector.from_pretrained(weights, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise EncoderError(
                f"score.speaker_weights {weights} did not load ({error}): name a folder with a WavLMForXVector, or a "
                "reachable hub's"
            ) from None
        missing = [name for name in report["missing_keys"] if not name.startswith("objective.")]
        if missing:
            raise EncoderError(
                f"score.speaker_weights {weights} lacks {missing[0]} and {len(missing) - 1} more: it was not trained "
                "to verify speakers"
            )
        self._model = self._model.to(device).eval()

    def embed(self, clips: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
        import torch

        out = np.zeros((len(clips), self._model.config.xvector_output_dim), dtype=np.float32)
        with torch.inference_mode():
            for index, (wav, rate) in enumerate(clips):
                inputs = self._features(at_least(wav, rate), sampling_rate=RATE, return_tensors="pt")
                found = self._model(inputs.input_values.to(self._model.device)).embeddings
                out[index] = found[0].float().cpu().numpy()
        return normalize(out)


class EcapaEncoder:
    """ECAPA-TDNN (2005.07143) by SpeechBrain, which is no dependency: ``pip install speechbrain``."""

    def __init__(self, weights: str, device: str = "cpu") -> None:
        try:
            from speechbrain.inference.speaker import EncoderClassifier
        except ImportError as error:
            raise EncoderError(
                f"score.speaker_encoder ecapa needs the package speechbrain ({error}): `pip install speechbrain`, or "
                "take resemblyzer or wavlm-sv"
            ) from None
        try:
            self._model: Any = EncoderClassifier.from_hparams(weights, run_opts={"device": device})
        except (OSError, ValueError, RuntimeError) as error:
            raise EncoderError(
                f"score.speaker_weights {weights} did not load ({error}): name a folder with hyperparams.yaml, or a "
                "reachable hub's"
            ) from None

    def embed(self, clips: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = [self._model.encode_batch(torch.from_numpy(at_least(*clip))[None])[0, 0] for clip in clips]
        return normalize(torch.stack(found).float().cpu().numpy()) if found else np.zeros((0, 1), dtype=np.float32)
