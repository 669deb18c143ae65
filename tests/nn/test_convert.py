"""Pooling of key and value heads."""

from __future__ import annotations

import pytest
import torch

from vall_e.nn.attention import Attention
from vall_e.nn.cache import KVCache
from vall_e.nn.convert import pool_heads, with_kv_heads
from vall_e.nn.rope import rotary
from vall_e.nn.weights import fill


def convert(attention: Attention, groups: int) -> Attention:
    out = Attention(32, attention.heads, groups)
    state = {f"attention.{name}": tensor for name, tensor in attention.state_dict().items()}
    pooled = with_kv_heads(state, attention.kv_heads, groups)
    fill(out, {name.removeprefix("attention."): tensor for name, tensor in pooled.items()}, "a test", "")
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads, groups", [(6, 2), (6, 1), (4, 2), (3, 1), (4, 4)])
def test_pooling_equal_heads_is_lossless_bit_for_bit(heads: int, groups: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    few = torch.randn(groups, 8, 32).to(dtype)
    many = few.repeat_interleave(heads // groups, dim=0).flatten(0, 1)
    pooled = pool_heads(many, heads, groups)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, few.flatten(0, 1))


def test_a_group_is_the_mean_of_its_neighbours() -> None:
    weight = torch.arange(4.0).repeat_interleave(2)[:, None].expand(8, 3)  # head h is full of h
    assert pool_heads(weight, 4, 2)[:, 0].tolist() == [0.5, 0.5, 2.5, 2.5]
    assert pool_heads(weight, 4, 1)[:, 0].tolist() == [1.5, 1.5]
    with pytest.raises(ValueError, match="3 does not divide 4"):
        pool_heads(weight, 4, 3)


@pytest.mark.parametrize("groups", [2, 1])
def test_attention_with_duplicated_heads_is_the_same_after_conversion(groups: int) -> None:
    torch.manual_seed(0)
    full = Attention(32, 4, 4)
    for layer in (full.k, full.v):
        heads = layer.weight.data.view(4, 8, 32)
        layer.weight.data = heads[:: 4 // groups].repeat_interleave(4 // groups, dim=0).reshape(32, 32)
    x, angles = torch.randn(2, 5, 32), rotary(torch.arange(5).expand(2, 5), 8)
    grouped = convert(full, groups)
    torch.testing.assert_close(grouped(x, angles, None), full(x, angles, None))
    cache = KVCache(1, 2, groups, 5, 8, torch.float32, torch.device("cpu"))
    cache.begin(5)
    torch.testing.assert_close(grouped(x, angles, None, cache), full(x, angles, None))
    cache.end()
    assert cache.tensors["keys"][0].shape == (2, groups, 5, 8)


def test_only_keys_and_values_change_and_without_them_it_is_an_error() -> None:
    torch.manual_seed(0)
    state = {f"blocks.0.attention.{name}": t for name, t in Attention(32, 4, 4).state_dict().items()}
    state |= {"alignment.key.weight": torch.randn(4, 32), "attention_norm.weight": torch.ones(32)}
    changed = {name for name, t in with_kv_heads(state, 4, 1).items() if t is not state[name]}
    assert changed == {"blocks.0.attention.k.weight", "blocks.0.attention.v.weight"}
    with pytest.raises(ValueError, match="no key and value heads"):
        with_kv_heads({"norm.weight": torch.ones(2)}, 4, 2)
