"""Our Transformer against torch's own with the same weights; its positions by the formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.backbones.checks import check_cache, check_causal
from tests.tiny import model_config
from vall_e.backbones.transformer import Transformer
from vall_e.nn.masks import Mask
from vall_e.nn.sinusoid import sinusoid


def _noisy(model: nn.Module) -> nn.Module:
    """Biases and norms that are not 0 and 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def ours() -> Transformer:
    torch.manual_seed(0)
    return _noisy(Transformer(model_config(backbone="transformer", kv_heads=4)))


@pytest.fixture
def theirs(ours: Transformer) -> nn.TransformerEncoder:
    config = ours.config
    layer = nn.TransformerEncoderLayer(
        config.dim, config.heads, config.ff_dim, 0.0, "gelu", batch_first=True, norm_first=True
    )
    norm = nn.LayerNorm(config.dim)
    model = nn.TransformerEncoder(layer, config.layers, norm, enable_nested_tensor=False).eval()
    norm.load_state_dict(ours.norm.state_dict())
    for mine, other in zip(ours.blocks, model.layers, strict=True):
        attention = mine.attention
        with torch.no_grad():
            other.self_attn.in_proj_weight.copy_(torch.cat([getattr(attention, n).weight for n in "qkv"]))
            other.self_attn.in_proj_bias.copy_(torch.cat([getattr(attention, n).bias for n in "qkv"]))
        other.self_attn.out_proj.load_state_dict(attention.o.state_dict())
        other.norm1.load_state_dict(mine.attention_norm.state_dict())
        other.norm2.load_state_dict(mine.feedforward_norm.state_dict())
        other.linear1.load_state_dict(mine.feedforward.up.state_dict())
        other.linear2.load_state_dict(mine.feedforward.down.state_dict())
    return model


@pytest.mark.parametrize("parallel", [False, True])
def test_equals_torch(ours: Transformer, theirs: nn.TransformerEncoder, parallel: bool) -> None:
    x, positions = torch.randn(2, 9, 32), torch.stack((torch.arange(9), torch.arange(9) + 3))
    mask = Mask(torch.tensor([9, 9]), torch.tensor([True, True])) if parallel else None
    causal = None if parallel else nn.Transformer.generate_square_subsequent_mask(9)
    with torch.no_grad():
        want = theirs(x + sinusoid(positions, 32), mask=causal)
        torch.testing.assert_close(ours(x, positions, mask), want, atol=1e-5, rtol=1e-4)


def test_sinusoids_by_the_formula() -> None:
    table = sinusoid(torch.tensor([[0, 3, 50]]), 6)[0]
    for row, position in zip(table, (0, 3, 50), strict=True):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            want = torch.tensor([math.sin(angle), math.cos(angle)])
            torch.testing.assert_close(row[2 * i : 2 * i + 2], want)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_causal_and_cached_equals_uncached(kv_heads: int) -> None:
    torch.manual_seed(0)
    ours = _noisy(Transformer(model_config(backbone="transformer", kv_heads=kv_heads)))
    check_causal(ours)
    check_cache(ours)


def test_starts_without_biases() -> None:
    ours = Transformer(model_config(backbone="transformer"))
    assert all(not parameter.any() for name, parameter in ours.named_parameters() if name.endswith("bias"))
