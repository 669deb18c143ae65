"""The norm that a CPU learns with: values and gradients are torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vall_e.nn.norm import RMSNorm, _WrittenOut


def _pair(eps: float | None, dtype: torch.dtype = torch.float32) -> tuple[nn.RMSNorm, RMSNorm]:
    torch.manual_seed(0)
    theirs, ours = nn.RMSNorm(24, eps=eps, dtype=dtype), RMSNorm(24, eps=eps, dtype=dtype)
    with torch.no_grad():
        ours.weight.copy_(theirs.weight.normal_())
    return theirs, ours


@pytest.mark.parametrize("eps", [None, 1e-6, 0.5])
@pytest.mark.parametrize("turned", [False, True])  # a view whose memory lies otherwise
def test_values_and_gradients_are_those_of_torch(eps: float | None, turned: bool) -> None:
    theirs, ours = _pair(eps)
    x, g = torch.randn(3, 5, 24), torch.randn(3, 5, 24)
    x[0, 0] = 0.0  # padding
    found = []
    for norm in (theirs, ours):
        leaf = x.clone().requires_grad_()
        out = norm(leaf.transpose(0, 1) if turned else leaf)
        out.backward(g.transpose(0, 1) if turned else g)
        found.append((out.detach(), leaf.grad, norm.weight.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_gradients_are_numerical_ones() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    assert torch.autograd.gradcheck(_WrittenOut.apply, (x.requires_grad_(), weight.requires_grad_(), 1e-3))


def test_what_is_frozen_gets_no_gradient_and_lets_it_through() -> None:
    _, ours = _pair(1e-6)
    ours.weight.requires_grad_(False)
    x = torch.randn(2, 24, requires_grad=True)
    ours(x).sum().backward()
    assert ours.weight.grad is None and x.grad.abs().sum() > 0
    ours.weight.requires_grad_(True)
    ours(x.detach()).sum().backward()
    assert ours.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_torch(dtype: torch.dtype) -> None:
    theirs, ours = _pair(1e-6, dtype)
    x = torch.randn(2, 24, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))
