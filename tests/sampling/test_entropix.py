"""Entropix: each of the four states does what it is for, and attention says how far."""

from __future__ import annotations

import math

import pytest
import torch

from tests.sampling.logits import make_logits
from vall_e.sampling.entropix import attention_spread, entropix, surprise
from vall_e.sampling.filters import top_k, top_p

V = 64
ENTROPY, VARENTROPY = 2.0, 1.0
WIDE = torch.full((1, 2, 4), 0.25)  # both heads attend everywhere
APART = torch.eye(4)[None, :2]  # each head attends to a position of its own


def _row(state: str) -> torch.Tensor:
    logits = torch.zeros(1, V) + torch.linspace(0, 0.3, V)  # even: many tokens are as good
    if state == "sure":
        logits[0, 5] = 20.0
    elif state == "rivals":  # one and, far behind but many, the others
        logits[0, 5] = 6.0
    elif state == "lost":
        logits[0, 5] = 4.0
    return logits


def _draws_from(state: str, attention: torch.Tensor | None = None, temperature: float = 0.8) -> torch.Tensor:
    return entropix(_row(state), temperature, ENTROPY, VARENTROPY, attention)


def test_entropy_and_varentropy_are_moments_of_the_surprise() -> None:
    logits = make_logits(3, V)
    logits[1, :9] = -torch.inf
    entropy, varentropy = surprise(logits)
    p = logits.double().softmax(-1)
    bits = -p.clamp(min=1e-300).log()
    torch.testing.assert_close(entropy[:, 0].double(), (p * bits).sum(-1))
    torch.testing.assert_close(varentropy[:, 0].double(), (p * bits**2).sum(-1) - (p * bits).sum(-1) ** 2)
    assert float(surprise(torch.zeros(1, V))[0]) == pytest.approx(math.log(V))


@pytest.mark.parametrize("state, high", [
    ("sure", (False, False)), ("even", (True, False)), ("rivals", (False, True)), ("lost", (True, True)),
])  # fmt: skip
def test_the_rows_of_this_file_are_in_their_states(state: str, high: tuple) -> None:
    entropy, varentropy = surprise(_row(state))
    assert (float(entropy) > ENTROPY, float(varentropy) > VARENTROPY) == high


def test_sure_is_greedy() -> None:
    for attention in (None, WIDE, APART):
        found = _draws_from("sure", attention)
        assert torch.isfinite(found).nonzero().tolist() == [[0, 5]]


def test_even_draws_from_all_at_a_temperature_that_grows_with_the_width_of_attention() -> None:
    for attention, factor in ((None, 1.3), (APART, 1.3), (WIDE, 1.5)):
        torch.testing.assert_close(_draws_from("even", attention), _row("even") / (0.8 * factor))


def test_rivals_are_a_few_and_more_where_the_heads_differ() -> None:
    for attention, factor, k in ((None, 1.2, 5), (WIDE, 1.2, 5), (APART, 1.2 + 0.3 * 0.5, 8)):
        torch.testing.assert_close(_draws_from("rivals", attention), top_k(_row("rivals") / (0.8 * factor), k))


def test_lost_is_hot_among_fewer_of_the_likely_tokens_the_wider_the_attention() -> None:
    for attention, factor, p in ((None, 2.0, 0.9), (APART, 2.0, 0.9), (WIDE, 2.5, 0.5)):
        torch.testing.assert_close(_draws_from("lost", attention), top_p(_row("lost") / (0.8 * factor), p))


def test_attention_is_measured_over_the_positions_that_a_row_has() -> None:
    ragged = torch.cat((torch.full((1, 2, 2), 0.5), torch.zeros(1, 2, 6)), dim=-1)
    wide, apart = attention_spread(ragged)
    assert float(wide) == pytest.approx(1.0) and float(apart) == 0.0
    wide, apart = attention_spread(APART)
    assert float(wide) == 0.0 and float(apart) == pytest.approx(0.5)
    assert float(attention_spread(torch.ones(1, 2, 1))[0]) == 0.0


def test_rows_do_not_touch_each_other_and_inputs_are_left_alone() -> None:
    states = ("sure", "even", "rivals", "lost")
    logits = torch.cat([_row(state) for state in states])
    before, attention = logits.clone(), torch.cat((WIDE, WIDE, APART, WIDE))
    together = entropix(logits, 0.8, ENTROPY, VARENTROPY, attention)
    alone = [_draws_from(state, a[None]) for state, a in zip(states, attention, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert torch.equal(logits, before) and torch.isfinite(together).any(-1).all()
