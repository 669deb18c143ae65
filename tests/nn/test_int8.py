"""Weights of 8 bits: near the layer that they stand for, and the same for a row in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vall_e.nn.int8 import Int8Linear


@pytest.mark.parametrize("bias", [False, True])
def test_near_the_layer_and_each_row_on_its_own(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 70, bias=bias)
    with torch.no_grad():
        linear.weight *= torch.logspace(-3, 1, 70)[:, None]  # rows of any size
        layer, x = Int8Linear(linear), torch.randn(3, 5, 96) * torch.logspace(-4, 4, 5)[:, None]
        got, want = layer(x), linear(x)
        spread = (want - (linear.bias if bias else 0)).std(-1, keepdim=True)
        exact = (want - got).abs() / linear.weight.norm(dim=1) / x.norm(dim=-1, keepdim=True)
        assert exact.max() < 0.02 and (spread > 0).all()
        for row in range(3):  # products of whole numbers: exactly the same
            torch.testing.assert_close(layer(x[row : row + 1, 2:3])[0, 0], got[row, 2], rtol=0, atol=0)
        assert torch.isfinite(layer(torch.zeros(1, 96))).all()


def test_whole_weights_and_inputs_are_exact() -> None:
    linear = nn.Linear(64, 64, bias=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-127, 128, (64, 64), generator=generator))
        linear.weight[:, 0] = 127
        x = torch.randint(-63, 64, (4, 64), generator=generator).float()
        x[:, 0] = Int8Linear(linear).largest
        torch.testing.assert_close(Int8Linear(linear)(x), linear(x), rtol=1e-6, atol=0.5)
    assert Int8Linear(linear).bytes < linear.weight.numel() * 4 / 3
