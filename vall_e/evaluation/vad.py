"""Where somebody speaks: WhisperX's voice activity detection (2303.00747, section 2.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from vall_e.evaluation.encoder import RATE

_ONSET, _OFFSET = 0.5, 0.363


class VadError(ValueError):
    """The detector cannot be loaded."""


class SpeechFinder:
    """A loaded detector.

    Args:
        kind: pyannote (its weights come with whisperx) or silero (needs a network once).
        device: cpu or cuda.
        longest: seconds that a stretch of speech may have.

    Raises:
        VadError: the detector did not load.
    """

    def __init__(self, kind: str, device: str, longest: float) -> None:
        # whisperx brings pyannote, whose import takes many seconds: only recordings that need it pay for it.
        import torch
        from whisperx.vads import Pyannote, Silero

        self._longest = longest
        limits = {"vad_onset": _ONSET, "vad_offset": _OFFSET, "chunk_size": longest}
        try:
            self._vad: Any = Pyannote(torch.device(device), **limits) if kind == "pyannote" else Silero(**limits)
        except Exception as error:
            raise VadError(
                f"recogniser.vad {kind} did not load: {error}; pyannote's weights come with whisperx, "
                "silero's need a network once"
            ) from error

    def __call__(self, wav: np.ndarray) -> list[tuple[float, float]]:
        """``wav`` float32 [N] at 16 kHz → start and end in seconds of its speech, in order, merged up to the limit."""
        found = self._vad({"waveform": self._vad.preprocess_audio(wav), "sample_rate": RATE})
        merged = self._vad.merge_chunks(found, self._longest, onset=_ONSET, offset=_OFFSET)
        end = len(wav) / RATE
        return [(max(0.0, part["start"]), min(end, part["end"])) for part in merged]
