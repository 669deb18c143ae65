"""The mixture of experts against a loop over positions; the balance loss by hand and against transformers'."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests.tiny import model_config
from vall_e.nn.experts import Experts, balance_loss


@pytest.fixture
def experts() -> Experts:
    torch.manual_seed(0)
    return Experts(16, 24, 5, 2)


def test_equals_a_loop_over_positions_with_gradients(experts: Experts) -> None:
    x = torch.randn(2, 7, 16, requires_grad=True)
    rows = []
    for row in x.reshape(-1, 16):
        logits = experts.router(row)
        first, second = logits.argsort(descending=True)[:2].tolist()
        share = torch.sigmoid(logits[first] - logits[second])
        rows.append(share * experts.experts[first](row) + (1 - share) * experts.experts[second](row))
    got, want = experts(x), torch.stack(rows).view(2, 7, 16)
    torch.testing.assert_close(got, want)
    weights = (x, *experts.parameters())
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), weights) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_position_depends_on_itself_alone(experts: Experts) -> None:
    x = torch.randn(2, 7, 16, requires_grad=True)
    experts(x)[1, 3].sum().backward()
    reached = x.grad.abs().amax(-1) > 0
    assert reached.nonzero().tolist() == [[1, 3]]


def test_an_idle_expert_has_gradient_zero_and_not_none(experts: Experts) -> None:
    experts(torch.randn(1, 1, 16)).sum().backward()
    reached = [bool(expert.up.weight.grad.any()) for expert in experts.experts]
    assert sum(reached) == 2


@pytest.mark.parametrize("active", [1, 2])
def test_balance_equals_transformers(active: int) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(40, 6)
    torch.testing.assert_close(balance_loss(logits, active), load_balancing_loss_func((logits,), 6, active))


def test_balance_is_least_where_the_load_is_even() -> None:
    even = 10 * torch.eye(6).roll(1, 1) + 9 * torch.eye(6)
    torch.testing.assert_close(balance_loss(even, 2), torch.tensor(2.0))
    one = torch.tensor([[20.0, 0, 0, 0, 0, 0]]).expand(6, 6)
    torch.testing.assert_close(balance_loss(one, 1), torch.tensor(6.0))


def test_training_on_the_balance_evens_the_load(experts: Experts) -> None:
    x = torch.randn(200, 16) + 1.0
    with torch.no_grad():
        experts.router.weight[0] += 0.3

    def greatest_share() -> float:
        chosen = experts.router(x).topk(2).indices
        return float(torch.bincount(chosen.flatten(), minlength=5).max()) / len(x)

    before = greatest_share()
    optimizer = torch.optim.Adam([experts.router.weight], lr=0.02)
    for _ in range(60):
        experts(x)
        loss = balance_loss(experts.logits, 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before > 0.9 and greatest_share() < 0.6


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="active 3 is above"):
        model_config(backbone="mixtral", experts={"count": 2, "active": 3})
    with pytest.raises(ValidationError, match="no meaning for backbone llama"):
        model_config(experts={"count": 4})
