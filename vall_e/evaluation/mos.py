"""How natural it sounds: DNSMOS P.835 (2110.01763), the ONNX model and polynomial of the speechmos package.

Dimensions: W windows, 144160 samples in a window (9.01 s at 16 kHz).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr

RATE = 16_000
WINDOW = int(9.01 * RATE)
_SILENCE_RMS = 1e-4


class Dnsmos:
    """Overall quality of clips, 1 (bad) to 5 (excellent), as listeners of ITU-T P.835 would give it.

    A clip shorter than the model's window of 9.01 s is repeated to fill exactly one; a longer one is
    heard in windows a second apart, as ``speechmos.dnsmos`` does. (The package doubles short clips and
    hears the same sound again in up to nine windows: on single words the two differ by at most 0.1, at
    a quarter of the time.)
    """

    def __init__(self, threads: int = 0) -> None:
        """``threads``: CPU threads; 0 reads OMP_NUM_THREADS or takes all cores."""
        import onnxruntime
        import speechmos
        from speechmos.dnsmos import DNSMOS

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
        options.inter_op_num_threads = 1
        model = Path(speechmos.__file__).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._polynomial = DNSMOS.get_polyfit_val

    def score(self, wav: np.ndarray, rate: int) -> float | None:
        """Overall MOS of ``wav`` float [samples] in -1..1 at ``rate`` Hz; None for silence, which has no quality."""
        wav = np.nan_to_num(np.asarray(wav, dtype=np.float32).reshape(-1))
        if rate != RATE and wav.size:
            wav = soxr.resample(wav, rate, RATE)
        if not wav.size or float(np.sqrt(np.mean(np.square(wav, dtype=np.float64)))) < _SILENCE_RMS:
            return None
        overall = []
        for window in mos_windows(np.clip(wav, -1.0, 1.0)):
            raw = self._session.run(None, {"input_1": window[None]})[0][0]
            overall.append(float(self._polynomial(None, *raw, False)[2]))
        return float(np.clip(np.mean(overall), 1.0, 5.0))

    def score_all(self, clips: Sequence[tuple[np.ndarray, int]]) -> list[float | None]:
        """``score`` of each (wav, rate)."""
        return [self.score(wav, rate) for wav, rate in clips]


def mos_windows(wav: np.ndarray) -> list[np.ndarray]:
    """``wav`` [samples] at 16 kHz, not empty, → windows [144160]: one for a short clip, else one a second."""
    if wav.size < WINDOW:
        return [np.tile(wav, -(-WINDOW // wav.size))[:WINDOW].astype(np.float32)]
    hops = int(wav.size // RATE - 9.01) + 1
    return [wav[hop * RATE : hop * RATE + WINDOW].astype(np.float32) for hop in range(max(1, hops))]
