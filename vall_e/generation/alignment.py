"""Did it say all of the text, in order? Asked of the model's own alignment head, after decoding.

Dimensions: R rows, T frames, S text slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vall_e.models.packing import Place, Sample, pack
from vall_e.models.vall_e import VallE

IMPOSSIBLE = -1e4  # nats: fewer frames than phones


def alignment_scores(model: VallE, samples: Sequence[Sample]) -> list[float]:
    """How well each response can be read as its text from the first phone to the end, without leaving one out.

    Args:
        model: one with an alignment head.
        samples: R of them, text, prompt and spoken response.

    Returns:
        per row the mean over frames of log p on the best monotonic path, in nats a frame.
    """
    with torch.inference_mode():
        packed = pack(samples, model.layout).to(model.device)
        log_p = model.align(packed).cpu().numpy()
    scores = []
    first_phone = 1 + (packed.segment == Place.TEXT).int().argmax(1)  # behind bos
    starts = zip(packed.response.tolist(), first_phone.tolist(), strict=True)
    for row, sample, (start, text) in zip(log_p, samples, starts, strict=True):
        frames, phones = sample.response.shape[1], len(sample.text)
        scores.append(best_path(row[start : start + frames + 1, text : text + phones + 1]) / (frames + 1))
    return scores


def best_path(log_p: np.ndarray) -> float:
    """Sum along the best path through [T, S] from the first corner to the last that stays or goes on by one a frame.

    Monotonic alignment search (2005.11129, algorithm 1) without the way back.
    """
    frames, slots = log_p.shape
    if frames < slots:
        return IMPOSSIBLE
    best = np.full(slots, -np.inf)
    best[0] = log_p[0, 0]
    for row in log_p[1:]:
        best[1:] = np.maximum(best[1:], best[:-1])
        best += row
    return float(best[-1])
