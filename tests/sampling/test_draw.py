"""Draws follow the distribution; a row's noise is its own."""

from __future__ import annotations

import math

import torch
from scipy.stats import kstest

from tests.sampling.logits import make_logits, make_noise
from vall_e.sampling.draw import MOST, draw, gumbel
from vall_e.sampling.noise import RowNoise

CPU = torch.device("cpu")


def test_draws_follow_the_distribution_at_a_temperature() -> None:
    logits = make_logits(1, 6)
    for temperature in (1.0, 0.4, 3.0):
        drawn = draw(logits.expand(20_000, 6), make_noise(20_000, 6), temperature)
        share = torch.bincount(drawn, minlength=6) / 20_000
        torch.testing.assert_close(share, (logits[0] / temperature).softmax(-1), atol=0.015, rtol=0)


def test_noise_is_gumbels_and_finite() -> None:
    noise = gumbel((300, 1000), torch.Generator().manual_seed(0)).flatten()
    assert noise.isfinite().all() and noise.min() >= -math.log(MOST) - 1e-6
    assert kstest(noise.numpy(), "gumbel_r").pvalue > 0.01
    assert gumbel((0, 4), torch.Generator()).shape == (0, 4)


def test_without_noise_the_greatest_is_drawn_and_what_cannot_be_never_is() -> None:
    logits = make_logits(1, 6)
    assert draw(logits, None) == logits.argmax()
    logits[0, 2] = -torch.inf
    assert not draw(logits.expand(2000, 6), make_noise(2000, 6), 50.0).eq(2).any()


def test_a_row_draws_the_same_noise_in_any_batch() -> None:
    together, alone = RowNoise([3, 4, 5], (2, 7), CPU, 4), RowNoise([5], (2, 7), CPU, 4)
    for step in range(9):
        if step == 3:
            together.select([0, 2])
        assert torch.equal(together.next()[-1], alone.next()[0])


def test_a_row_draws_the_same_noise_whenever_it_joins_and_others_leave() -> None:
    want = {seed: RowNoise([seed], (3,), CPU, 4) for seed in range(5)}
    batch, live = RowNoise([0, 1], (3,), CPU, 4), [0, 1]
    joins, leaves = {3: [2], 5: [3, 4]}, {7: [0, 2, 4], 13: [2, 1]}
    for step in range(30):
        if step in joins:
            batch.extend(RowNoise(joins[step], (3,), CPU, 4))
            live += joins[step]
        if step in leaves:
            batch.select(leaves[step])
            live = [live[i] for i in leaves[step]]
        noise = batch.next()
        assert noise.shape == (len(live), 3) and noise.isfinite().all()
        for row, seed in zip(noise, live, strict=True):
            assert torch.equal(row, want[seed].next()[0])
    batch.select([])
    batch.extend(RowNoise([9], (3,), CPU, 4))
    assert torch.equal(batch.next(), RowNoise([9], (3,), CPU, 4).next())
