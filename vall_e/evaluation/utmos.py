"""UTMOS (2204.02152) out of a local TorchScript file: predicted naturalness, 1 (bad) to 5 (excellent).

No kept package brings it, so the model comes from outside: any module scripted or traced to map a wave float32 [1, N]
at 16 kHz to a score (a tensor of one number), saved with ``torch.jit.save``. docs/evaluation.md shows how to make one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vall_e.audio import resample

RATE = 16_000
SHORTEST = RATE // 2
_SILENCE_RMS = 1e-4


class UtmosError(ValueError):
    """``score.utmos`` is no scripted module that scores waves."""


class Utmos:
    """Scores clips one by one, for padding would be heard.

    Raises:
        UtmosError: ``path`` is not there, or no TorchScript.
    """

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        import torch

        if not Path(path).is_file():
            raise UtmosError(f"score.utmos {path}: no such file; name a TorchScript module, or null")
        try:
            self._model = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise UtmosError(f"score.utmos {path} is no TorchScript: {str(error).splitlines()[0]}") from None
        self._path, self._device = path, device

    def score(self, wav: np.ndarray, rate: int) -> float | None:
        """Naturalness of ``wav`` float [N] at ``rate`` Hz; None for silence. A clip below half a second is repeated."""
        import torch

        wav = resample(np.nan_to_num(np.asarray(wav, dtype=np.float32).reshape(-1)), rate, RATE)
        if not wav.size or float(np.sqrt(np.mean(np.square(wav, dtype=np.float64)))) < _SILENCE_RMS:
            return None
        if wav.size < SHORTEST:
            wav = np.tile(wav, -(-SHORTEST // wav.size))[:SHORTEST]
        with torch.inference_mode():
            try:
                found = self._model(torch.from_numpy(np.clip(wav, -1.0, 1.0))[None].to(self._device))
            except RuntimeError as error:
                last = str(error).strip().splitlines()[-1]
                raise UtmosError(f"score.utmos {self._path} does not take a wave [1, N]: {last}") from None
        if not isinstance(found, torch.Tensor) or found.numel() != 1:
            raise UtmosError(f"score.utmos {self._path} gives no single score for a wave [1, N] at 16 kHz")
        return float(found)
