"""Stages of a curriculum: exact to the step, from any step, with any number of workers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import CODES, LEVELS, corpus, model_config, train_config
from vall_e.config import ConfigError, ModelConfig, TrainConfig, parse_params
from vall_e.data.batches import POOL, Batches
from vall_e.data.curriculum import Curriculum, batches_of
from vall_e.data.samples import SampleMaker
from vall_e.models.packing import Packed, Sample
from vall_e.training.feed import Feed

RATE = 50.0  # frames a second of the tiny corpus, whose words have 4 to 7 frames


def _batches(
    kind: str = "ar-depth", model: dict | None = None, rows: int = 96, **changes: object
) -> Batches | Curriculum:
    def maker(train: TrainConfig, model: ModelConfig) -> SampleMaker:
        return SampleMaker(corpus(rows), train, model, CODES, 3, 0, 0.0, augment=True)

    train = train_config(**({"max_steps": 40, "join": None, "batch_frames": 60} | changes))
    return batches_of(train, model_config(kind, **(model or {})), maker)


def _frames(batch: list[Sample]) -> list[int]:
    return [sample.response.shape[1] for sample in batch]


def test_without_stages_there_is_one_regimen() -> None:
    assert isinstance(_batches(), Batches)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stage_holds_until_its_step_and_no_longer(accumulate: int) -> None:
    stages = [{"until": 5, "max_response_seconds": 4 / RATE}, {"until": 19, "min_response_seconds": 6 / RATE}]
    batches = _batches(stages=stages, accumulate=accumulate)
    seen = [set(), set(), set()]
    for step in range(40 * accumulate):
        stage = (step // accumulate >= 5) + (step // accumulate >= 19)
        seen[stage].update(_frames(batches.batch(step)))
    assert seen == [{4}, {6, 7}, {4, 5, 6, 7}]


def _equal(a: list[Packed], b: list[Packed]) -> bool:
    fields = Packed.__dataclass_fields__
    return len(a) == len(b) and all(
        getattr(x, name).equal(getattr(y, name)) for x, y in zip(a, b, strict=True) for name in fields
    )


def test_workers_and_a_resume_in_any_stage_change_nothing() -> None:
    changes = {"stages": [{"until": 5, "text_dropout": 1.0}, {"until": 21, "input_mask": 0.0, "input_random": 0.0}]}
    layout = _batches().maker.layout
    whole = list(Feed(_batches(**changes), layout, 0, 3 * POOL, 0))
    assert _equal(list(Feed(_batches(**changes), layout, 0, 3 * POOL, 2)), whole)
    for first in (3, 5, 20, 22):
        assert _equal(list(Feed(_batches(**changes), layout, first, 3 * POOL, 1)), whole[first:])


def test_ranks_change_their_stage_at_the_same_step() -> None:
    batches = _batches(stages=[{"until": 11, "max_response_seconds": 4 / RATE}])
    for rank in range(2):
        share = batches.share(rank, 2)
        assert all(set(_frames(share.batch(step))) == {4} for step in range(11))
        assert set(_frames(share.batch(11))) - {4}


def test_one_level_per_row_then_all() -> None:
    stage = {"until": 9, "level_loss": "one", "level_weights": [1.0, 3.0, 1e-9]}
    batches = _batches("v2-nar", stages=[stage])
    before, after = ([s.asked for step in part for s in batches.batch(step)] for part in (range(9), range(9, 20)))
    first = np.bincount(before, minlength=LEVELS)
    assert first[2] == 0 and 1.5 < first[1] / first[0] < 6
    assert set(after) == {None}


def test_tasks_and_joining_change() -> None:
    stages = [{"until": 8, "task_weights": {"tts": 1.0, "stt": 1e-9}, "join": None}]
    batches = _batches(model={"tasks": ("tts", "stt")}, stages=stages, join={"min_clips": 2, "max_clips": 3})
    before, after = ([s for step in part for s in batches.batch(step)] for part in (range(8), range(8, 24)))
    assert {s.task for s in before} == {"tts"} and {s.task for s in after} == {"tts", "stt"}
    assert max(_frames(before)) <= 7
    assert np.mean([s.response.shape[1] for s in after if s.task == "tts"]) > 8


def test_joined_strings_end_before_the_longest_response() -> None:
    join = {"min_clips": 2, "max_clips": 5, "gap_seconds": (0.0, 0.05)}
    batches = _batches(join=join, max_response_seconds=15 / RATE)
    frames = [n for step in range(40) for n in _frames(batches.batch(step))]
    assert 12 < max(frames) <= 15


def test_the_joining_curriculum_counts_optimizer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    made = SampleMaker.make
    monkeypatch.setattr(SampleMaker, "make", lambda self, i, step, rng: asked.append(step) or made(self, i, step, rng))
    share = _batches(accumulate=4).share(1, 2)
    asked.clear()
    for step in range(5 * POOL):
        share.batch(step)
    assert sorted(set(asked)) == [pool * POOL // 4 for pool in range(5)]


def test_what_is_too_short_or_too_long_is_left_out_and_counted() -> None:
    batches = _batches(min_response_seconds=5 / RATE, max_response_seconds=6 / RATE)
    assert {n for step in range(20) for n in _frames(batches.batch(step))} == {5, 6}
    assert batches.left_out == 48 and _batches().left_out == 0
    with pytest.raises(ValueError, match=r"leave no utterance: they have 0\.08 to 0\.14 s"):
        _batches(min_response_seconds=1.0)


@pytest.mark.parametrize("balance", ["none", "speaker"])
def test_by_duration_first_then_shuffled(balance: str) -> None:
    settings = {"rows": 12 * POOL, "order": "duration", "balance": balance, "max_response_seconds": 6 / RATE}
    batches = _batches(**settings)
    steps = int(batches.order.size / batches.samples_per_pool) * POOL  # whole pools of the first epoch
    lengths = [n for step in range(steps) for n in sorted(_frames(batches.batch(step)))]
    assert steps >= POOL and lengths == sorted(lengths) and min(lengths) < max(lengths)
    first = batches.order.at(np.arange(batches.order.size))
    if balance == "none":
        assert sorted(first) == batches.maker.chosen().tolist()
    later = [n for step in range(steps + POOL, steps + 3 * POOL) for n in _frames(batches.batch(step))]
    assert later != sorted(later)
    assert [_frames(batches.batch(k)) for k in (7, 0)] == [_frames(_batches(**settings).batch(k)) for k in (7, 0)]


@pytest.mark.parametrize(("train", "reason"), [
    ({"stages": [{"until": 9, "text_dropout": 0.0}, {"until": 9, "join": None}]}, r"must rise, .* \[9, 9\]"),
    ({"stages": [{"until": 99, "text_dropout": 0.0}], "max_steps": 50}, "until step 99, and train.max_steps is 50"),
    ({"stages": [{"until": 9}]}, r"train\.stages\[0\] changes nothing"),
    ({"stages": [{"until": 9, "dim": 8}]}, r"train\.stages\.0\.dim: unknown key"),
    ({"stages": [{"until": 9, "batch_frames": 8}]}, r"train\.stages\.0\.batch_frames: unknown key"),
    ({"stages": [{"until": 9, "min_response_seconds": 13}]}, "until step 9: min_response_seconds must be below"),
    ({"stages": [{"until": 9, "level_loss": "one"}]}, "level_loss one is for v2"),
    ({"stages": [{"until": 9, "level_weights": "equal"}]}, "until 9: level_weights, and no level is drawn"),
    ({"stages": [{"until": 9, "token_dropout": {}}]}, "token_dropout is for level passes"),
    ({"order": "duration", "join": {}}, "order duration is for single utterances"),
    ({"min_response_seconds": 1.0, "join": {}}, "set join.min_clips"),
])  # fmt: skip
def test_stages_that_cannot_be_are_refused(train: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_params({"train": train})


def test_a_stage_says_only_what_it_names() -> None:
    """So that settings which were written down and read again are the same."""
    train = TrainConfig(join={"max_clips": 4}, stages=[{"until": 9, "join": None}, {"until": 12, "lr_factor": 0.5}])
    assert train.model_dump()["stages"] == ({"until": 9, "join": None}, {"until": 12, "lr_factor": 0.5})
    again = TrainConfig.model_validate(train.model_dump())
    assert again == train and again.model_dump() == train.model_dump()
    assert [phase.train.join and phase.train.join.max_clips for phase in again.phases] == [None, 4, 4]
    assert [phase.first for phase in again.phases] == [0, 9, 12]
