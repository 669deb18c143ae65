"""Did it say all of the text, in order? Asked of the model's own alignment head, after decoding.

The head is asked about the rows that it was trained on: those that go left to right, and where a kind has none, those
that demask, with nothing masked.

Dimensions: R rows, T frames, S text slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from vall_e.family import KINDS
from vall_e.models.packing import Place, Sample, pack
from vall_e.models.vall_e import VallE

IMPOSSIBLE = -1e4  # nats: fewer frames than phones
JUMP = 12.0  # nats: odds of 160,000 to 1 that the speech did not simply go on


def alignment_scores(model: VallE, samples: Sequence[Sample]) -> list[float]:
    """How well each response can be read as its text from the first phone to the end, without leaving one out.

    Args:
        model: one with an alignment head.
        samples: R of them, text, prompt and spoken response.

    Returns:
        per row the mean over frames of log p on the best monotonic path, in nats a frame.
    """
    return [best_path(log_p) / len(log_p) for log_p in _log_p(model, samples)]


def aligned_row(model: VallE, sample: Sample) -> Sample:
    """A spoken sample as a row in which the model was taught where in the text a frame is."""
    mode = "ar" if "ar" in KINDS[model.config.kind].modes else "mask"
    return replace(sample, mode=mode, level=0, corrupted=None, spoken=None)


def first_frame(row: Sample, start: int) -> int:
    """The position that tells of the first frame, of an ``aligned_row`` whose response starts at ``start``."""
    return start + (row.mode == "mask")  # left to right, the position in front tells


def _log_p(model: VallE, samples: Sequence[Sample]) -> list[np.ndarray]:
    """Per row log p [T + 1, S + 1] of the phones, and behind them the text's end, in the frames and at the stop."""
    samples = [aligned_row(model, sample) for sample in samples]
    with torch.inference_mode():
        packed = pack(samples, model.layout).to(model.device)
        log_p = model.align(packed).cpu().numpy()
    found = []
    first_phone = 1 + (packed.segment == Place.TEXT).int().argmax(1)  # behind bos
    starts = zip(packed.response.tolist(), first_phone.tolist(), strict=True)
    for row, sample, (start, text) in zip(log_p, samples, starts, strict=True):
        frames, phones = sample.response.shape[1], len(sample.text)
        first = first_frame(sample, start)
        part = row[first : first + frames + 1, text : text + phones + 1]
        if sample.mode == "mask":  # a row of a given length has no stop: behind its last frame is the text's end
            end = np.where(np.arange(phones + 1) < phones, IMPOSSIBLE, 0.0)
            part = np.concatenate((part[:frames], end[None]))
        found.append(part)
    return found


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


def read_along(model: VallE, samples: Sequence[Sample]) -> list[np.ndarray]:
    """Which phone each response frame says, int64 [T] per row, by the likeliest way through the text (``trace``)."""
    return [trace(log_p[:-1, :-1]) for log_p in _log_p(model, samples)]


def trace(log_p: np.ndarray, jump: float = JUMP) -> np.ndarray:
    """The likeliest slot of each frame, int64 [T], by log p [T, S]: a frame stays or goes on by one for nothing.

    To begin elsewhere than in front, to leave something out or to go back costs ``jump`` nats, so that it takes the
    evidence of several frames; the way may end anywhere.
    """
    frames, slots = log_p.shape
    came = np.zeros((frames, slots), dtype=np.int64)
    best = log_p[0] - jump
    best[0] += jump
    own = np.arange(slots)
    for frame in range(1, frames):
        top = int(best.argmax())
        score, origin = best.copy(), own.copy()
        ahead = np.flatnonzero(best[:-1] > score[1:]) + 1
        score[ahead], origin[ahead] = best[ahead - 1], ahead - 1
        leapt = best[top] - jump > score
        score[leapt], origin[leapt] = best[top] - jump, top
        came[frame], best = origin, score + log_p[frame]
    path = np.zeros(frames, dtype=np.int64)
    path[-1] = best.argmax()
    for frame in range(frames - 1, 0, -1):
        path[frame - 1] = came[frame, path[frame]]
    return path
