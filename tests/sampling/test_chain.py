"""Samplers: identities, oracles from transformers, distributions, rows of their own."""

from __future__ import annotations

import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from vall_e.sampling.chain import RowNoise, draw, guide, repetition_penalty, sample, top_k, top_p


def _logits(rows: int = 4, size: int = 20) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(0)) * 3


def test_filters_equal_transformers_and_leave_their_input_alone() -> None:
    logits = _logits()
    before = logits.clone()
    torch.testing.assert_close(top_k(logits, 5), TopKLogitsWarper(5)(None, logits))
    torch.testing.assert_close(top_p(logits, 0.8), TopPLogitsWarper(0.8)(None, logits))
    history = torch.tensor([[1, 2, 2], [0, 0, 0], [5, 6, 7], [19, 3, 3]])
    want = RepetitionPenaltyLogitsProcessor(1.7)(history, logits.clone())
    torch.testing.assert_close(repetition_penalty(logits, history, 1.7), want)
    assert torch.equal(logits, before)


def test_neutral_values_are_the_identity() -> None:
    logits = _logits()
    assert torch.equal(top_k(logits, 0), logits)
    assert torch.equal(top_p(logits, 1.0), logits)
    assert torch.equal(repetition_penalty(logits, torch.zeros(4, 3, dtype=torch.int64), 1.0), logits)
    assert torch.equal(repetition_penalty(logits, torch.full((4, 3), -1), 2.0), logits)
    assert torch.equal(guide(logits, -logits, 0.0), logits)


def test_no_filter_empties_a_row() -> None:
    for p in (1e-6, 0.5):
        assert torch.isfinite(top_p(_logits(), p)).any(-1).all()
    assert torch.isfinite(top_k(_logits(), 1)).sum(-1).eq(1).all()


def test_temperature_zero_is_greedy_and_draws_follow_the_distribution() -> None:
    logits = _logits(1, 6)
    noise = torch.empty(20_000, 6).exponential_(generator=torch.Generator().manual_seed(1))
    assert sample(logits, noise[:1], temperature=0.0) == logits.argmax()
    drawn = draw(logits.expand(20_000, 6), noise)
    share = torch.bincount(drawn, minlength=6) / 20_000
    torch.testing.assert_close(share, logits[0].softmax(-1), atol=0.015, rtol=0)


def test_a_row_draws_the_same_noise_in_any_batch() -> None:
    together, alone = RowNoise([3, 4, 5], (2, 7), torch.device("cpu"), 4), RowNoise([5], (2, 7), torch.device("cpu"), 4)
    for step in range(9):
        if step == 3:
            together.select(torch.tensor([0, 2]))
        assert torch.equal(together.next()[-1], alone.next()[0])
