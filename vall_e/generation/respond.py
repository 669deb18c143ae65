"""The codes of a response, whatever kind of model makes them.

Level 0 (or whole frames) comes left to right or by demasking, the levels above in parallel passes where the kind has
them. Dimensions: L levels, l levels that the first pass makes, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vall_e.decoding import SamplingConfig
from vall_e.family import KINDS
from vall_e.generation.alignment import alignment_scores
from vall_e.generation.ar import Candidate, decode
from vall_e.generation.beam import beam_search
from vall_e.generation.demask import demask
from vall_e.generation.duration import planned_frames, stop_bounds
from vall_e.generation.nar import fill_levels
from vall_e.models.packing import Sample
from vall_e.models.vall_e import VallE

ALIGNED = ("tts", "tts-c", "ns", "tse")  # tasks whose output is all that the text says: their frames were aligned to it
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
    frames: Sequence[int | None] | None = None,
    given: Sequence[np.ndarray | None] | None = None,
    draft: VallE | None = None,
) -> list[tuple[Candidate, np.ndarray]]:
    """One response for each prompt.

    Args:
        prompts: samples; a response that they hold already is a prefix to go on from.
        sampling: ``first`` chooses the pass that begins where a kind has both.
        seeds: one per prompt.
        longest: frames that each may take.
        choose: the best of several candidates.
        progress: called with (frames so far, rows still speaking) by the autoregressive pass.
        frames: how long each is to be, None where the model says. By demasking it is that long; left to right it ends
            by itself within ``duration.stop_bounds``. Either way ``longest`` holds.
        given: by demasking, whole responses int64 [L, T] in place of prefix and ``frames``, n where a code is to be
            made; what is given stays. None for a row without.
        draft: left to right, a smaller model that drafts for ``sampling.speculation``.

    Returns:
        per prompt the chosen candidate of the first pass, and codes int64 [L or l, T]: all levels where the kind makes
        them, else those of the first pass.

    Raises:
        NoFirstLevelError: a model that only adds levels.
        ValueError: ``given`` to a pass that goes left to right.
    """
    kind = KINDS[model.config.kind]
    if not kind.begins:
        raise NoFirstLevelError(
            f"a model of kind {model.config.kind} only adds levels to what another one drew: speak with kind ar+nar"
        )
    asked = list(frames or [None] * len(prompts))
    known = [p.response for p in prompts]
    if begins_masked(model, sampling):
        known, whole = _outlines(model, prompts, longest, asked, given or [None] * len(prompts))
        first = [codes[: model.layout.shown] for codes in whole]
        lengths = [codes.shape[1] for codes in whole]
        found = demask(model, prompts, lengths, sampling.demask, seeds, first, sampling.candidates)
        candidates = [
            _aligned(model, [replace(c, codes=c.codes[:, k.shape[1] :]) for c in row], replace(p, response=k))
            for row, k, p in zip(found, known, prompts, strict=True)
        ]
    else:
        if given is not None:
            raise ValueError("codes can be given to kinds that demask (nar-len, ar+nar-len, v2-nar), not left to right")
        whole = None
        candidates = _left_to_right(model, prompts, sampling, seeds, longest, asked, progress, draft)
    chosen = [choose(c, p) for c, p in zip(candidates, prompts, strict=True)]
    codes = [c.codes for c in chosen]
    if "level" in kind.modes:
        codes = _levels(model, prompts, sampling, seeds, codes, known, whole)
    return list(zip(chosen, codes, strict=True))


def begins_masked(model: VallE, sampling: SamplingConfig) -> bool:
    """The first pass of a response demasks; else it goes left to right."""
    modes = KINDS[model.config.kind].modes
    return "mask" in modes and (sampling.first == "mask" or "ar" not in modes)


def is_drawn(model: VallE, sampling: SamplingConfig) -> bool:
    """Another seed may give another response: a pass has a temperature, and no search takes its place."""
    levels = "level" in KINDS[model.config.kind].modes and sampling.nar.temperature > 0
    if begins_masked(model, sampling):
        return levels or sampling.demask.temperature > 0 or sampling.demask.choice_temperature > 0
    return levels or (sampling.beam is None and sampling.ar.temperature > 0)


def _outlines(
    model: VallE,
    prompts: Sequence[Sample],
    longest: Sequence[int],
    asked: Sequence[int | None],
    given: Sequence[np.ndarray | None],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prefixes int64 [L, P] that are no part of the result, and whole responses int64 [L, T] with n where they are to
    be made."""
    to_plan = [i for i, codes in enumerate(given) if codes is None]
    prefixes, whole = [p.response for p in prompts], list(given)
    plan: list[int] = []
    if to_plan:
        picked = [[values[i] for i in to_plan] for values in (prompts, longest, asked)]
        plan = planned_frames(model, *picked)
    for i, new in zip(to_plan, plan, strict=True):
        whole[i] = np.pad(prefixes[i], ((0, 0), (0, new)), constant_values=model.layout.codes)
    none = np.zeros((model.layout.levels, 0), dtype=np.int64)
    return [none if codes is not None else p for codes, p in zip(given, prefixes, strict=True)], whole


def _left_to_right(
    model: VallE,
    prompts: Sequence[Sample],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    longest: Sequence[int],
    asked: Sequence[int | None],
    progress: Callable[[int, int], None] | None,
    draft: VallE | None,
) -> list[list[Candidate]]:
    bounds = [(0, most) if wanted is None else stop_bounds(wanted) for wanted, most in zip(asked, longest, strict=True)]
    earliest, latest = ([min(bound[i], most) for bound, most in zip(bounds, longest, strict=True)] for i in range(2))
    if sampling.beam is not None:
        candidates = beam_search(model, prompts, sampling, latest, progress, earliest)
    else:
        candidates = decode(model, prompts, sampling, seeds, latest, progress, earliest, draft)
    return [_aligned(model, c, p) for c, p in zip(candidates, prompts, strict=True)]


def _levels(
    model: VallE,
    prompts: Sequence[Sample],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    first: Sequence[np.ndarray],
    known: Sequence[np.ndarray],
    whole: Sequence[np.ndarray] | None,
) -> list[np.ndarray]:
    """All levels int64 [L, T] of what the ``first`` pass drew, int64 [1, T], behind a ``known`` prefix [L, P]."""
    outlines = []
    for index, (codes, prefix) in enumerate(zip(first, known, strict=True)):
        new = np.full((len(prefix), codes.shape[1]), model.layout.codes, dtype=np.int64)
        outline = np.concatenate((prefix, new), axis=1) if whole is None else whole[index].copy()
        outline[:1, prefix.shape[1] :] = codes
        outlines.append(outline)
    filled = fill_levels(model, prompts, outlines, sampling, seeds)
    return [codes[:, k.shape[1] :] for codes, k in zip(filled, known, strict=True)]


def _aligned(model: VallE, candidates: Sequence[Candidate], prompt: Sample) -> list[Candidate]:
    """The candidates with the score of the alignment head, where the model has one and there is a choice."""
    if model.alignment is None or len(candidates) == 1 or prompt.task not in ALIGNED:
        return list(candidates)
    rows = []
    for candidate in candidates:
        codes = np.zeros((model.layout.levels, candidate.codes.shape[1]), dtype=np.int64)
        codes[: model.layout.shown] = candidate.codes
        rows.append(replace(prompt, response=np.concatenate((prompt.response, codes), axis=1), spoken=None))
    return [replace(c, alignment=score) for c, score in zip(candidates, alignment_scores(model, rows), strict=True)]
