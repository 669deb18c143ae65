"""The codes of a response, whatever kind of model makes them.

Level 0 (or whole frames) comes left to right or by demasking, the levels above in parallel passes where the kind has
them. Dimensions: L levels, l levels that the first pass makes, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vall_e.config import SamplingConfig
from vall_e.family import KINDS
from vall_e.generation.alignment import alignment_scores
from vall_e.generation.ar import Candidate, decode
from vall_e.generation.demask import demask
from vall_e.generation.duration import predict_frames
from vall_e.generation.nar import fill_levels
from vall_e.generation.speculative import speculate
from vall_e.models.packing import Layout, Sample
from vall_e.models.vall_e import VallE

Choose = Callable[[Sequence[Candidate], Sample], Candidate]


class NoFirstLevelError(ValueError):
    """The model only adds levels, and nobody drew the first."""


def respond(
    model: VallE,
    prompts: Sequence[Sample],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    longest: Sequence[int],
    choose: Choose,
    progress: Callable[[int, int], None] | None = None,
    frames: Sequence[int] | None = None,
) -> list[tuple[Candidate, np.ndarray]]:
    """One response for each prompt.

    Args:
        prompts: samples; a response that they hold already is a prefix to go on from.
        sampling: ``first`` chooses the pass that begins where a kind has both.
        seeds: one per prompt.
        longest: frames that each may take.
        choose: the best of several candidates.
        progress: called with (frames so far, rows still speaking) by the autoregressive pass.
        frames: how long each is to be, for demasking; None lets the model say.

    Returns:
        per prompt the chosen candidate of the first pass, and codes int64 [L or l, T]: all levels where the kind makes
        them, else those of the first pass.
    """
    modes = KINDS[model.config.kind].modes
    if "ar" not in modes and "mask" not in modes:
        raise NoFirstLevelError(
            f"a model of kind {model.config.kind} only adds levels to what another one drew: speak with kind ar+nar"
        )
    masked = "mask" in modes and (sampling.first == "mask" or "ar" not in modes)
    if masked:
        candidates = _by_demasking(model, prompts, sampling, seeds, longest, frames)
    else:
        draw = decode if sampling.speculation is None else speculate
        candidates = draw(model, prompts, sampling, seeds, longest, progress)
        candidates = [_aligned(model, c, p) for c, p in zip(candidates, prompts, strict=True)]
    chosen = [choose(c, p) for c, p in zip(candidates, prompts, strict=True)]
    codes = [c.codes for c in chosen]
    if "level" in modes:
        codes = fill_levels(model, prompts, [_open(c, model.layout) for c in codes], sampling, seeds)
    return list(zip(chosen, codes, strict=True))


def _open(first: np.ndarray, layout: Layout) -> np.ndarray:
    """Level 0 int64 [1, T] with the others to be made, int64 [L, T]."""
    codes = np.full((layout.levels, first.shape[1]), layout.codes, dtype=np.int64)
    codes[0] = first[0]
    return codes


def _by_demasking(
    model: VallE,
    prompts: Sequence[Sample],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    longest: Sequence[int],
    frames: Sequence[int] | None,
) -> list[list[Candidate]]:
    known = [prompt.response.shape[1] for prompt in prompts]
    if frames is None:
        frames = predict_frames(model, prompts, longest)
        frames = [max(f - k, 1) for f, k in zip(frames, known, strict=True)]
    shown, n = model.layout.shown, model.layout.codes
    given = []
    for prompt, new in zip(prompts, frames, strict=True):
        fresh = np.full((shown, new), n, dtype=np.int64)
        given.append(np.concatenate((prompt.response[:shown], fresh), axis=1))
    found = demask(model, prompts, [g.shape[1] for g in given], sampling.demask, seeds, given)
    return [[Candidate(codes[:, k:], True, 0.0)] for codes, k in zip(found, known, strict=True)]


def _aligned(model: VallE, candidates: Sequence[Candidate], prompt: Sample) -> list[Candidate]:
    """The candidates with the score of the alignment head, where the model has one and there is a choice."""
    if model.alignment is None or len(candidates) == 1:
        return list(candidates)
    rows = []
    for candidate in candidates:
        codes = np.zeros((model.layout.levels, candidate.codes.shape[1]), dtype=np.int64)
        codes[: model.layout.shown] = candidate.codes
        rows.append(replace(prompt, response=np.concatenate((prompt.response, codes), axis=1)))
    return [replace(c, alignment=score) for c, score in zip(candidates, alignment_scores(model, rows), strict=True)]
