"""Penalties: transformers' and brute force as oracles, monotone, identities, inputs left alone."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import RepetitionPenaltyLogitsProcessor

from tests.sampling.logits import make_logits
from vall_e.sampling.penalties import ban, centred, dry, length_penalty, repetition_penalty

V = 20


def _history(rows: int = 6, window: int = 12, symbols: int = V, seed: int = 3) -> torch.Tensor:
    """Rows that are full, partly full and empty."""
    history = torch.randint(symbols, (rows, window), generator=torch.Generator().manual_seed(seed))
    for row in range(rows):
        history[row, : max(0, row - 1) * window // (rows - 2)] = -1
    return history


@pytest.mark.parametrize("penalty", [0.6, 1.0, 1.7])
def test_repetition_penalty_without_decay_is_transformers(penalty: float) -> None:
    logits, history = make_logits(), _history()
    found = repetition_penalty(logits, history, penalty)
    for row, past in enumerate(history):
        past = past[past >= 0][None]
        want = RepetitionPenaltyLogitsProcessor(penalty)(past, logits[row : row + 1].clone())
        torch.testing.assert_close(found[row : row + 1], want)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.25, 1.0])
def test_repetition_penalty_decays_and_counts_as_by_hand(decay: float, each: bool) -> None:
    logits, history = make_logits(), _history(symbols=5)
    want = logits.clone().double()
    for row, past in enumerate(history.tolist()):
        for token in set(past) - {-1}:
            powers = [(1 - decay) ** back for back, other in enumerate(reversed(past)) if other == token]
            factor = 1.7 ** (sum(powers) if each else max(powers))
            want[row, token] = want[row, token] / factor if want[row, token] > 0 else want[row, token] * factor
    found = repetition_penalty(logits, history, 1.7, decay, each)
    torch.testing.assert_close(found, want.float())
    if decay == 0:
        once = repetition_penalty(logits, history, 1.7)
        assert torch.equal(found, once) is not each


def test_logits_are_centred_by_those_that_are_finite() -> None:
    logits = make_logits()
    logits[2, :7] = -torch.inf
    found = centred(logits)
    torch.testing.assert_close(centred(logits + 9.0), found)
    assert torch.equal(torch.isfinite(found), torch.isfinite(logits))
    for row, values in zip(found, logits, strict=True):
        torch.testing.assert_close(row, values - values[torch.isfinite(values)].mean())


def test_length_penalty_is_monotone_both_ways() -> None:
    logits, lengths, stop = make_logits(1).expand(30, V), torch.arange(30), 7
    chance = {
        penalty: length_penalty(logits, lengths, stop, penalty).softmax(-1)[:, stop] for penalty in (-0.3, 0, 0.3)
    }
    assert (chance[0.3].diff() < 0).all() and (chance[-0.3].diff() > 0).all() and (chance[0].diff() == 0).all()
    others = length_penalty(logits, lengths, stop, 0.3) - logits
    assert others[:, :stop].eq(0).all() and others[:, stop + 1 :].eq(0).all()
    torch.testing.assert_close(others[:, stop], -0.3 * lengths)


def _dry(past: list[int], multiplier: float, base: float, allowed: int) -> dict[int, float]:
    """Penalties by trying every earlier token and every length."""
    found: dict[int, int] = {}
    for at in range(1, len(past)):
        length = 0
        while length < at and past[at - 1 - length] == past[len(past) - 1 - length] != -1:
            length += 1
        found[past[at]] = max(found.get(past[at], 0), length)
    return {token: multiplier * base ** (n - allowed) for token, n in found.items() if n >= allowed and token >= 0}


@pytest.mark.parametrize("symbols", [2, 4])
@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_dry_is_brute_force(symbols: int, allowed: int) -> None:
    logits, history = make_logits(200), _history(200, 14, symbols)
    want, count = logits.clone(), 0
    for row, past in enumerate(history.tolist()):
        for token, penalty in _dry(past, 0.8, 1.75, allowed).items():
            want[row, token] -= penalty
            count += 1
    torch.testing.assert_close(dry(logits, history, 0.8, allowed=allowed), want)
    assert count > 5


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_dry_takes_no_memory_for_pairs_of_a_long_past() -> None:
    history = torch.randint(V, (12, 2_000), generator=torch.Generator().manual_seed(0))
    history[3, -40:] = history[3, 100:140]
    with _Largest() as largest:
        found = -dry(torch.zeros(12, V), history, 1.0, 1.5, 10)
    assert largest.numbers <= history.numel()
    assert found[3].nonzero().flatten().tolist() == [int(history[3, 140])] and found[:3].count_nonzero() == 0
    assert found[3].max() == pytest.approx(1.5**30)


def test_dry_punishes_what_goes_on_with_a_repeated_sequence() -> None:
    history = torch.tensor([[-1, 1, 2, 3, 4, 1, 2, 3]])
    lost = -dry(torch.zeros(1, V), history, 1.0, 2.0, 2)[0]
    assert lost.nonzero().flatten().tolist() == [4] and lost[4] == 2.0  # three tokens match, two are allowed


def test_a_banned_token_cannot_be_drawn() -> None:
    logits = make_logits()
    found = ban(logits, (3, 5, 3, V + 4))
    assert found[:, [3, 5]].eq(-torch.inf).all() and torch.isfinite(found).sum() == 6 * (V - 2)
    with pytest.raises(ValueError, match="all 20 codes of the vocabulary are banned"):
        ban(logits, range(V))


def test_neutral_values_are_the_identity_and_harsh_ones_leave_something() -> None:
    logits, history = make_logits(), _history()
    before, past = logits.clone(), history.clone()
    empty = torch.full_like(history, -1)
    lengths = torch.arange(6)
    for same in (
        repetition_penalty(logits, history, 1.0, 0.5, True), repetition_penalty(logits, empty, 2.0),
        length_penalty(logits, lengths, 0, 0.0), length_penalty(logits, lengths * 0, 0, 9.0),
        dry(logits, history, 0.0), dry(logits, empty, 5.0, 3.0, 1), ban(logits, ()),
    ):  # fmt: skip
        assert torch.equal(same, before)
    ones = torch.ones_like(history)
    for harsh in (
        repetition_penalty(logits, ones, 1e9, each=True), repetition_penalty(logits, ones, 1e-9, each=True),
        repetition_penalty(torch.zeros_like(logits), ones, 1e30, each=True), dry(logits, ones, 1e6, 1e6, 1),
    ):  # fmt: skip
        assert torch.isfinite(harsh).all()
    assert torch.equal(logits, before) and torch.equal(history, past)
