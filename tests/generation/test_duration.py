"""How long a response is: as predicted, as asked, by a factor; and prefixes and levels around it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.generation.oracle import GREEDY, make_prompts
from tests.tiny import CODES, LEVELS, build
from vall_e.decoding import DemaskConfig, SamplingConfig
from vall_e.generation import respond as module
from vall_e.generation.ar import Candidate, decode
from vall_e.generation.duration import planned_frames, predict_frames, stop_bounds
from vall_e.generation.respond import respond
from vall_e.models.packing import Sample

SAMPLING = GREEDY.model_copy(update={"demask": DemaskConfig(steps=2, guidance=1.0), "candidates": 2})
MASKED = ["nar-len", "v2-nar"]


def _choose(candidates: list[Candidate], _: Sample) -> Candidate:
    return candidates[0]


def _lengths(kind: str, frames: list[int | None], speeds: list[float] | None) -> list[int]:
    frames = planned_frames(build(kind), make_prompts(), [40] * 3, frames, speeds)
    found = respond(build(kind), make_prompts(), SAMPLING, [0, 1, 2], [40] * 3, _choose, frames=frames)
    return [codes.shape[1] for _, codes in found]


@pytest.mark.parametrize("kind", MASKED)
def test_frames_follow_what_is_asked_and_the_factor(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vall_e.generation.duration.predict_frames", lambda model, prompts, longest: [12] * len(prompts)
    )
    assert _lengths(kind, [None] * 3, None) == [12, 12, 12]
    assert _lengths(kind, [None] * 3, [2.0, 1.0, 0.5]) == [6, 12, 24]
    assert _lengths(kind, [None] * 3, [1.1, 1.01, 0.99]) == [11, 12, 12], "no jump around the voice's own pace"
    assert _lengths(kind, [5, None, 17], [2.0, 2.0, 2.0]) == [5, 6, 17]
    assert _lengths(kind, [90, None, None], [1.0, 1.0, 0.1]) == [40, 12, 40]


@pytest.mark.parametrize("kind", MASKED)
def test_without_a_wish_it_is_the_models_own_prediction(kind: str) -> None:
    model, prompts = build(kind), make_prompts()
    assert planned_frames(model, prompts, [30] * 3, [None] * 3, [1.0] * 3) == predict_frames(model, prompts, [30] * 3)


def test_a_spelt_length_is_the_median_of_what_may_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 is the likeliest first digit, and most of the lengths that are meant begin with another one."""

    def spell(model: object, rows: list, sampling: SamplingConfig, *_: object) -> list[list[Candidate]]:
        numbers = [40, 50, 60, 70, 80, 90, 95, 96, 100, 101, 103, 105, 106, 108, 109]
        assert sampling.candidates == len(numbers) and sampling.ar.temperature == 1.0
        return [[Candidate(np.array([[int(d) for d in str(n)]]), True, 0.0) for n in numbers] for _ in rows]

    monkeypatch.setattr("vall_e.generation.duration.decode", spell)
    assert predict_frames(build("nar-len"), make_prompts()[:2], [200, 90]) == [96, 90]


def test_a_factor_is_of_what_comes_behind_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vall_e.generation.duration.predict_frames", lambda model, prompts, longest: [12] * len(prompts)
    )
    prompt = replace(make_prompts()[1], response=np.zeros((LEVELS, 4), dtype=np.int64))
    assert planned_frames(build("nar-len"), [prompt], [40], [None], [2.0]) == [4]
    assert planned_frames(build("nar-len"), [prompt], [40], [7], [2.0]) == [7]
    # 4 frames at twice the speed were 8 at the voice's own: of 12 that leaves 4, said in 2.
    assert planned_frames(build("nar-len"), [prompt], [40], [None], [2.0], [2.0]) == [2]


@pytest.mark.parametrize("kind", ["ar", "ar-depth", "v2-ar"])
@pytest.mark.parametrize("asked", [4, 10, 20])
def test_left_to_right_it_ends_within_the_bounds(kind: str, asked: int) -> None:
    least, most = stop_bounds(asked)
    assert least <= asked <= most
    sampling = GREEDY.model_copy(update={"temperature": 1.0, "candidates": 3})
    for seed in range(3):
        found = decode(build(kind), make_prompts(), sampling, [seed] * 3, [most] * 3, shortest=[least] * 3)
        assert all(least <= c.codes.shape[1] <= most and c.codes.max() < CODES for row in found for c in row)
        for longest in (most, 3):
            ((_, codes),) = respond(
                build(kind), make_prompts()[:1], sampling, [seed], [longest], _choose, frames=[asked]
            )
            assert min(least, longest) <= codes.shape[1] <= longest


@pytest.mark.parametrize("kind", ["ar+nar", "nar-len", "v2-nar"])
def test_a_prefix_is_seen_on_all_its_levels_and_is_no_part_of_the_result(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    prefix = rng.integers(CODES, size=(LEVELS, 5))
    prompt = replace(make_prompts()[1], response=prefix, spoken=None)
    seen: list[np.ndarray] = []
    fill = module.fill_levels

    def watched(model: object, prompts: object, first: list[np.ndarray], *more: object) -> list[np.ndarray]:
        seen.extend(first)
        return fill(model, prompts, first, *more)

    monkeypatch.setattr(module, "fill_levels", watched)
    ((_, codes),) = respond(build(kind), [prompt], SAMPLING, [0], [9], _choose, frames=[9])
    assert codes.shape[0] == LEVELS and codes.max() < CODES
    if kind != "ar+nar":
        assert codes.shape[1] == 9
    for known in seen:
        np.testing.assert_array_equal(known[:, :5], prefix)
        assert (known[1:, 5:] == CODES).all()


def test_codes_are_given_to_demasking_only() -> None:
    given = [np.full((LEVELS, 6), CODES)]
    with pytest.raises(ValueError, match="given to kinds that demask"):
        respond(build("ar-depth"), make_prompts()[:1], SAMPLING, [0], [9], _choose, given=given)
    given[0][:, 2] = 3
    for kind in MASKED:
        ((_, codes),) = respond(build(kind), make_prompts()[:1], SAMPLING, [0], [9], _choose, given=given)
        assert codes.shape == (LEVELS, 6) and (codes[:, 2] == 3).all()


def test_of_several_candidates_the_chosen_one_is_kept() -> None:
    def last(candidates: list[Candidate], _: Sample) -> Candidate:
        assert len(candidates) == 3
        return candidates[2]

    sampling = SAMPLING.model_copy(update={"candidates": 3})
    ((chosen, codes),) = respond(build("nar-len"), make_prompts()[1:2], sampling, [0], [9], last, frames=[9])
    np.testing.assert_array_equal(codes[:1], chosen.codes)
