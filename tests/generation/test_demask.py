"""Iterative demasking: the schedule, what stays, one step, and batches."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import CODES, LEVELS, build, sample
from vall_e.decoding import DemaskConfig
from vall_e.generation.demask import _Row as Row
from vall_e.generation.demask import demask, masked_after
from vall_e.models.packing import Sample, pack

KINDS = ("nar-len", "v2-nar")
GREEDY = DemaskConfig(steps=1, temperature=0.0, guidance=0.0, choice_temperature=0.0)
DRAWN = DemaskConfig(steps=6, temperature=1.0, guidance=1.0)


def _prompts(count: int = 3) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [replace(sample(rng, 2 + i, 3 * i, 0), mode="mask", spoken=None) for i in range(count)]


def test_the_schedule_is_a_cosine_and_ends_with_nothing_masked() -> None:
    left = [masked_after(step, 8, 100) for step in range(9)]
    assert left[0] == 100 and left[4] == 70 and left[8] == 0
    assert all(a > b for a, b in itertools.pairwise(left))


@pytest.mark.parametrize("remask", [False, True])
@pytest.mark.parametrize("order", ["level", "free", "frame"])
def test_as_many_are_masked_as_the_schedule_says(order: str, remask: bool) -> None:
    config = DRAWN.model_copy(update={"remask": remask, "order": order})
    row = Row(_prompts(1)[0], torch.full((LEVELS, 12), CODES), CODES, 3)
    before = row.codes
    for step in range(1, config.steps + 1):
        row.fill(torch.randn(LEVELS, 12, CODES).log_softmax(-1), step, config.steps, config, 1.0, range(LEVELS))
        masked = row.codes == CODES
        assert masked.sum(1).tolist() == [masked_after(step, config.steps, 12)] * LEVELS
        if order == "frame":
            assert (masked == masked[0]).all()
        if not remask:  # what was kept is never masked or changed again
            kept = before != CODES
            assert (row.codes[kept] == before[kept]).all()
        before = row.codes.clone()


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_argmax_and_a_row_does_not_depend_on_its_batch(kind: str) -> None:
    model, prompts = build(kind), _prompts()
    together = demask(model, prompts, [5, 7, 4], GREEDY.model_copy(update={"order": "free"}), [0, 1, 2])
    for prompt, frames, codes in zip(prompts, (5, 7, 4), together, strict=True):
        seen = np.full((LEVELS, frames), CODES)
        packed = pack([replace(prompt, response=np.zeros_like(seen), corrupted=seen)], model.layout)
        with torch.no_grad():
            states = model.heads.prepare(model.hidden(packed)[0, int(packed.response[0]) + 1 :])
            want = [model.heads(states, level, [])[:, :CODES].argmax(-1) for level in range(model.layout.shown)]
        np.testing.assert_array_equal(codes, torch.stack(want).numpy())
    for config in (DRAWN, DRAWN.model_copy(update={"order": "free"})):
        drawn = demask(model, prompts, [5, 7, 4], config, [7, 8, 9])
        alone = [demask(model, [p], [n], config, [s])[0] for p, n, s in zip(prompts, (5, 7, 4), (7, 8, 9), strict=True)]
        for a, b in zip(drawn, alone, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.max() < CODES


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_stays(kind: str) -> None:
    """No mask is the source itself; some masks are filled around what is there."""
    model, rng = build(kind), np.random.default_rng(0)
    shown = model.layout.shown
    source = rng.integers(CODES, size=(shown, 8))
    some = source.copy()
    some[:, [1, 2, 6]] = CODES
    whole, filled = demask(model, _prompts(2), [8, 8], DRAWN, [0, 1], [source, some])
    np.testing.assert_array_equal(whole, source)
    keep = some != CODES
    np.testing.assert_array_equal(filled[keep], source[keep])
    assert filled.max() < CODES
    with pytest.raises(ValueError, match="given codes"):
        demask(model, _prompts(1), [8], DRAWN, [0], [source[:, :3]])


def test_the_order_is_the_codecs_unless_it_is_named() -> None:
    """Without an order of levels: all at once, each on its own, or a frame's together; level by level never."""

    def codes(residual: bool, order: str, kind: str = "v2-nar") -> list[list[int]]:
        config = DRAWN.model_copy(update={"order": order})
        return demask(build(kind, residual=residual), _prompts(1), [9], config, [4])[0].tolist()

    assert codes(True, "auto") == codes(True, "level") != codes(True, "free")
    assert codes(False, "auto") == codes(False, "free") != codes(False, "frame")
    with pytest.raises(ValueError, match=r"sampling\.demask\.order level .* have none \(FSQ\): take free"):
        codes(False, "level")
    assert codes(False, "level", "nar-len") == codes(True, "level", "nar-len")  # one level has its order
