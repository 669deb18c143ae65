"""Iterative demasking: the schedule, what stays, one step, candidates, batches, and how many forwards it takes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import CODES, LEVELS, build, sample
from vall_e.decoding import DemaskConfig
from vall_e.generation import demask as module
from vall_e.generation.demask import SCHEDULES, demask, masked_after
from vall_e.models.packing import Sample, pack
from vall_e.models.parallel import ParallelPasses
from vall_e.models.vall_e import VallE

KINDS = ("nar-len", "v2-nar")
GREEDY = DemaskConfig(steps=1, guidance=0.0)  # the temperature is gone at the last step
DRAWN = DemaskConfig(steps=6, temperature=1.0, guidance=1.0)


def _prompts(count: int = 3) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [replace(sample(rng, 2 + i, 3 * i, 0), mode="mask", spoken=None) for i in range(count)]


def _codes(*args: object, **options: object) -> list[np.ndarray]:
    return [row[0].codes for row in demask(*args, **options)]


class _Watched(ParallelPasses):
    """Notes what each pass was shown."""

    seen: list[torch.Tensor]

    def __call__(self, codes: torch.Tensor, *args: object) -> torch.Tensor:
        self.seen.append(codes.clone())
        return super().__call__(codes, *args)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Codes int64 [rows, l, T] that each pass was shown."""
    watched = type("Watched", (_Watched,), {"seen": []})
    monkeypatch.setattr(module, "ParallelPasses", watched)
    return watched.seen


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_begins_with_all_and_ends_with_nothing_masked(schedule: str) -> None:
    positions = torch.tensor([100, 7, 0])
    left = [masked_after(step, 8, positions, schedule) for step in range(9)]
    assert left[0].tolist() == [100, 7, 0] and left[8].tolist() == [0, 0, 0]
    assert all(bool((a >= b).all()) and a[0] > b[0] for a, b in itertools.pairwise(left))
    half = {"cosine": 70, "linear": 50, "square": 75, "root": 29}[schedule]
    assert left[4][0] == half


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("remask", [False, True])
@pytest.mark.parametrize("order", ["level", "free", "frame"])
def test_as_many_are_masked_as_the_schedule_says(
    order: str, remask: bool, schedule: str, seen: list[torch.Tensor]
) -> None:
    """In steps forwards; what was kept is never masked or changed again, unless remasking is asked for."""
    config = DRAWN.model_copy(update={"remask": remask, "order": order, "schedule": schedule, "later_steps": 3})
    frames = [12, 5]
    done = _codes(build("v2-nar"), _prompts(2), frames, config, [3, 4])
    stages = [(range(LEVELS), 6)] if order != "level" else [(range(k, k + 1), 3 if k else 6) for k in range(LEVELS)]
    passes = iter(seen)
    for levels, steps in stages:
        for step in range(steps):
            shown = next(passes)
            assert len(shown) == 4  # with and without text, in one batch
            assert torch.equal(shown[:2], shown[2:])
            for row, length in enumerate(frames):
                masked = (shown[row, :, :length] == CODES).sum(1).tolist()
                share = SCHEDULES[schedule](step / steps)
                assert masked == [
                    math.floor(length * share) if k in levels else length * (k > levels[0]) for k in range(LEVELS)
                ]
    assert next(passes, None) is None
    if order == "frame":
        assert all(bool(((s == CODES) == (s[:, :1] == CODES)).all()) for s in seen)
    if not remask:
        for before, after in itertools.pairwise([s[0] for s in seen] + [torch.from_numpy(done[0])]):
            kept = before != CODES
            assert torch.equal(after[kept], before[kept])


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_argmax_and_a_row_does_not_depend_on_its_batch(kind: str) -> None:
    model, prompts = build(kind), _prompts()
    together = _codes(model, prompts, [5, 7, 4], GREEDY.model_copy(update={"order": "free"}), [0, 1, 2])
    for prompt, frames, codes in zip(prompts, (5, 7, 4), together, strict=True):
        seen = np.full((LEVELS, frames), CODES)
        packed = pack([replace(prompt, response=np.zeros_like(seen), corrupted=seen)], model.layout)
        with torch.no_grad():
            states = model.heads.prepare(model.hidden(packed)[0, int(packed.response[0]) + 1 :])
            want = [model.heads(states, level, [])[:, :CODES].argmax(-1) for level in range(model.layout.shown)]
        np.testing.assert_array_equal(codes, torch.stack(want).numpy())
    for config in (DRAWN, DRAWN.model_copy(update={"order": "free", "remask": True})):
        drawn = demask(model, prompts, [5, 7, 4], config, [7, 8, 9], candidates=2)
        for prompt, n, seed, row in zip(prompts, (5, 7, 4), (7, 8, 9), drawn, strict=True):
            alone = demask(model, [prompt], [n], config, [seed], candidates=2)[0]
            for a, b in zip(row, alone, strict=True):
                np.testing.assert_array_equal(a.codes, b.codes)
                assert a.score == pytest.approx(b.score, abs=1e-4)
                assert a.codes.max() < CODES


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_stays(kind: str) -> None:
    """No mask is the source itself; some masks are filled around what is there."""
    model, rng = build(kind), np.random.default_rng(0)
    shown = model.layout.shown
    source = rng.integers(CODES, size=(shown, 8))
    some = source.copy()
    some[:, [1, 2, 6]] = CODES
    whole, filled = _codes(model, _prompts(2), [8, 8], DRAWN, [0, 1], [source, some])
    np.testing.assert_array_equal(whole, source)
    keep = some != CODES
    np.testing.assert_array_equal(filled[keep], source[keep])
    assert filled.max() < CODES
    with pytest.raises(ValueError, match="given codes"):
        demask(model, _prompts(1), [8], DRAWN, [0], [source[:, :3]])


def _score(model: VallE, prompt: Sample, codes: np.ndarray, steps: list[torch.Tensor], row: int) -> float:
    """Mean over codes of log p(code | text) - log p(code | no text) at the step that kept it, from whole rows."""
    gains = np.zeros(codes.shape)
    for shown, after in itertools.pairwise([*steps, None]):
        seen = shown[row, :, : codes.shape[1]].numpy()
        kept = codes if after is None else after[row, :, : codes.shape[1]].numpy()
        full = np.full((LEVELS, codes.shape[1]), CODES)
        full[: len(seen)] = seen
        pair = [replace(p, response=np.zeros_like(full), corrupted=full) for p in (prompt, prompt.without_text())]
        log_p = []
        for sample_ in pair:
            packed = pack([sample_], model.layout)
            states = model.heads.prepare(model.hidden(packed)[0, int(packed.response[0]) + 1 :])
            log_p.append([model.heads(states, k, [])[:, :CODES].log_softmax(-1).numpy() for k in range(len(codes))])
        for level, frame in zip(*((seen == CODES) & (kept != CODES)).nonzero(), strict=True):
            code = codes[level, frame]
            gains[level, frame] = log_p[0][level][frame, code] - log_p[1][level][frame, code]
    return float(gains.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_differ_and_have_the_gain_of_their_text(kind: str, seen: list[torch.Tensor]) -> None:
    model, prompt = build(kind), _prompts()[1]
    config = DRAWN.model_copy(update={"order": "free"})
    (found,) = demask(model, [prompt], [7], config, [5], candidates=3)
    assert len({c.codes.tobytes() for c in found}) == 3
    with torch.no_grad():
        for row, candidate in enumerate(found):
            want = _score(model, prompt, candidate.codes, seen, row)
            assert candidate.score == pytest.approx(want, abs=1e-4) and candidate.finished
    (single,) = demask(model, [prompt], [7], config, [5])
    np.testing.assert_array_equal(single[0].codes, found[0].codes)


def test_guidance_falls_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    strengths: list[float] = []

    def guide(log_p: torch.Tensor, null: torch.Tensor, strength: float) -> torch.Tensor:
        strengths.append(strength)
        return log_p

    monkeypatch.setattr(module, "guide", guide)
    config = DemaskConfig(steps=5, guidance=2.0, anneal_guidance=0.5)
    demask(build("nar-len"), _prompts(1), [20], config, [0])
    assert strengths == pytest.approx([2.0, 1.75, 1.5, 1.25, 1.0])


def test_the_order_is_the_codecs_unless_it_is_named() -> None:
    """Without an order of levels: all at once, each on its own, or a frame's together; level by level never."""

    def codes(residual: bool, order: str, kind: str = "v2-nar") -> list[list[int]]:
        config = DRAWN.model_copy(update={"order": order})
        return _codes(build(kind, residual=residual), _prompts(1), [9], config, [4])[0].tolist()

    assert codes(True, "auto") == codes(True, "level") != codes(True, "free")
    assert codes(False, "auto") == codes(False, "free") != codes(False, "frame")
    with pytest.raises(ValueError, match=r"sampling\.demask\.order level .* have none \(FSQ\): take free"):
        codes(False, "level")
    assert codes(False, "level", "nar-len") == codes(True, "level", "nar-len")  # one level has its order
