"""Batches that other processes make ahead are those that this one would make; ranks share an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.tiny import CODES, corpus, model_config, train_config
from vall_e.data import order
from vall_e.data.batches import POOL, Batches
from vall_e.data.samples import SampleMaker
from vall_e.models.packing import Packed, Sample
from vall_e.training.feed import VALIDATION_BATCHES, Data, Feed


def _batches(frames: int = 60, **changes: object) -> Batches:
    maker = SampleMaker(corpus(12 * POOL), train_config(**changes), model_config(), CODES, 3, 0, 0.0, augment=True)
    return Batches(maker, frames, 0)


def _equal(a: list[Packed], b: list[Packed]) -> bool:
    fields = Packed.__dataclass_fields__
    return len(a) == len(b) and all(
        getattr(x, name).equal(getattr(y, name)) for x, y in zip(a, b, strict=True) for name in fields
    )


def test_any_number_of_workers_and_any_first_step_give_the_same_batches() -> None:
    batches, whole = _batches(), None
    for workers in (0, 1, 2):
        feed = Feed(batches, batches.maker.layout, 0, 3 * POOL + 2, workers)
        made = list(feed)
        assert len(made) == feed.step == 3 * POOL + 2 and feed.waited > 0
        whole = whole or made
        assert _equal(made, whole)
    for first, last in ((5, 2 * POOL), (POOL, POOL + 3), (11, 12)):
        assert _equal(list(Feed(_batches(), batches.maker.layout, first, last, 1)), whole[first:last])


def _key(sample: Sample) -> bytes:
    return sample.response.tobytes() + sample.prompt.tobytes() + sample.corrupted.tobytes()


@pytest.mark.parametrize("small", [1 << 16, 0])
def test_ranks_see_together_what_one_sees_and_nothing_twice(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the steps of a pool, W processes have the samples of W pools of one process."""
    monkeypatch.setattr(order, "SMALL", small)
    batches, world = _batches(join=None), 3
    pools = [range(p * POOL, (p + 1) * POOL) for p in range(6)]
    alone = [Counter(_key(s) for step in pool for s in batches.batch(step)) for pool in pools]
    shares = [batches.share(rank, world) for rank in range(world)]
    for pool in range(2):
        seen = Counter(_key(s) for share in shares for k in range(POOL) for s in share.batch(pool * POOL + k))
        assert seen == sum(alone[pool * world : (pool + 1) * world], Counter())
    assert shares[0].steps_per_epoch == pytest.approx(batches.steps_per_epoch / world)
    # So the first pools of all ranks are of one epoch: no row twice.
    assert batches.samples_per_pool <= 12 * POOL / world
    rows = batches.order.at(np.arange(world * batches.samples_per_pool))
    assert len(set(rows.tolist())) == len(rows)


def test_little_of_a_batch_is_padding() -> None:
    batches = _batches(400)
    rows = [[batches.maker.layout.length(s) for s in batches.batch(step)] for step in range(6 * POOL)]
    used, room = sum(map(sum, rows)), sum(len(r) * max(r) for r in rows)
    assert 1 - used / room < 0.04


def test_validation_makes_no_more_than_it_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its few batches are a pool of their own: every utterance in turn, none made for batches that nobody asks for."""
    maker = SampleMaker(corpus(12 * POOL), train_config(), model_config(), CODES, 3, 0, 0.0, augment=False)
    batches, made, make = Batches(maker, 400, 0, VALIDATION_BATCHES), [], SampleMaker.make
    monkeypatch.setattr(SampleMaker, "make", lambda self, row, *rest: made.append(row) or make(self, row, *rest))
    data = Data(batches, batches, maker.layout, train_config())
    shown = sum(len(packed.lengths) for packed in data.val_dataloader())
    assert shown == len(made) == len(set(made)) == batches.samples_per_pool


def test_balance_evens_out_speakers_in_training_and_not_in_validation() -> None:
    uneven, seen = corpus(200), {}
    for exponent in (1.0, 0.0):
        train = train_config(balance="group", balance_exponent=exponent)
        maker = SampleMaker(uneven, train, model_config(), CODES, 3, 0, 0.0, augment=True)
        at = Batches(maker, 100, 0).order.at(np.arange(400))
        seen[exponent] = np.bincount(uneven.utterances.groups["group"].code[at])
    assert seen[1.0].tolist() == seen[0.0].tolist() == [200, 200]  # two groups of a hundred each
    quiet = SampleMaker(uneven, train_config(balance="speaker"), model_config(), CODES, 3, 0, 0.0, augment=False)
    assert Batches(quiet, 100, 0).order.groups is None
