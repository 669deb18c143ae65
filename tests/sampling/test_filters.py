"""Temperature and filters: transformers as the oracle where it has them, definitions elsewhere, limits, identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.sampling.logits import make_logits
from vall_e.sampling.filters import dynamic_temperature, likeliest, min_p, top_k, top_n_sigma, top_p


def test_filters_equal_transformers() -> None:
    logits = make_logits(50)
    for k in (1, 5, 19):
        torch.testing.assert_close(top_k(logits, k), TopKLogitsWarper(k)(None, logits))
    for p in (0.05, 0.5, 0.8, 0.99):
        torch.testing.assert_close(top_p(logits, p), TopPLogitsWarper(p)(None, logits))
        torch.testing.assert_close(min_p(logits, p), MinPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("n", [0.3, 1.0, 2.0])
def test_top_n_sigma_keeps_what_is_near_the_greatest_at_any_temperature(n: float) -> None:
    logits = make_logits(30)
    logits[3, :7] = -torch.inf  # what cannot be drawn counts for nothing
    kept = torch.isfinite(top_n_sigma(logits, n))
    for row, values in zip(kept.numpy(), logits.double().numpy(), strict=True):
        finite = values[np.isfinite(values)]
        np.testing.assert_array_equal(row, values >= finite.max() - n * finite.std())
    for temperature in (0.1, 7.0):
        assert torch.equal(torch.isfinite(top_n_sigma(logits / temperature, n)), kept)


def test_dynamic_temperature_has_its_limits_and_middle() -> None:
    def at(p: float) -> float:
        rest = math.log((1 - p) / 999)
        logits = torch.full((1, 1000), rest)
        logits[0, 3] = math.log(p)
        return float(dynamic_temperature(logits, 0.2, 1.4))

    edge = 1 / (1 + math.exp(5))
    assert at(0.5) == pytest.approx(0.8, abs=1e-4)
    assert at(1 - 1e-7) == pytest.approx(0.2 + 1.2 * edge, abs=1e-4)
    assert at(0.001) == pytest.approx(1.4 - 1.2 / (1 + math.exp(4.99)), abs=1e-4)
    found = [at(p) for p in np.linspace(0.01, 0.99, 20)]
    assert (np.diff(found) < 0).all()
    logits = make_logits()
    assert torch.equal(dynamic_temperature(logits, 0.7, 0.7), torch.full((6, 1), 0.7))


def test_likeliest_has_a_number_and_a_share_of_each_row() -> None:
    logits = make_logits(2)
    k, p = torch.tensor([[2], [20]]), torch.tensor([[2.0], [0.6]])
    found = likeliest(logits, k, p)
    assert torch.equal(found[:1], top_k(logits[:1], 2)) and torch.equal(found[1:], top_p(logits[1:], 0.6))


def test_neutral_values_are_the_identity_and_harsh_ones_leave_the_greatest() -> None:
    logits = make_logits()
    before = logits.clone()
    for same in (
        top_k(logits, 0), top_k(logits, 99), top_p(logits, 1.0), min_p(logits, 0.0), top_n_sigma(logits, 0.0),
        likeliest(logits),
    ):  # fmt: skip
        assert torch.equal(same, logits)
    greatest = torch.nn.functional.one_hot(logits.argmax(-1), 20).bool()
    for one in (top_k(logits, 1), top_p(logits, 1e-6), min_p(logits, 1.0), top_n_sigma(logits, 1e-6)):
        assert torch.equal(torch.isfinite(one), greatest)
    banned = logits.masked_fill(torch.arange(20) % 2 == 0, -torch.inf)
    for found in (top_k(banned, 15), min_p(banned, 1e-12), top_n_sigma(banned, 50.0)):
        assert torch.equal(found, banned)
    assert torch.equal(top_p(banned, 0.5)[:, 1::2], top_p(logits[:, 1::2], 0.5))
    flat = torch.zeros(1, 20)
    for found in (min_p(flat, 1.0), top_n_sigma(flat, 1.0)):
        assert torch.equal(found, flat)
    assert torch.equal(logits, before)
