"""Rotary positions, grouped heads, the cache."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

from vall_e.family import RopeConfig
from vall_e.nn.attention import Attention, attend
from vall_e.nn.cache import KVCache
from vall_e.nn.rope import rotary, rotate


def test_rotary_equals_transformers() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
    positions = torch.arange(7).expand(2, 7)
    oracle = LlamaRotaryEmbedding(LlamaConfig(hidden_size=32, num_attention_heads=4, rope_theta=500.0))
    want_q, want_k = apply_rotary_pos_emb(q, k, *oracle(q, positions))
    angles = rotary(positions, 8, RopeConfig(base=500.0))
    torch.testing.assert_close(rotate(q, *angles), want_q)
    torch.testing.assert_close(rotate(k, *angles), want_k)


def test_grouped_heads_equal_full_heads_with_repeated_keys() -> None:
    torch.manual_seed(0)
    grouped, full = Attention(32, 4, 2), Attention(32, 4, 4)
    full.q.weight.data, full.o.weight.data = grouped.q.weight.data, grouped.o.weight.data
    for name in ("k", "v"):
        heads = getattr(grouped, name).weight.data.view(2, 8, 32).repeat_interleave(2, dim=0)
        getattr(full, name).weight.data = heads.reshape(32, 32)
    x, angles = torch.randn(3, 5, 32), rotary(torch.arange(5).expand(3, 5), 8)
    torch.testing.assert_close(grouped(x, angles, None), full(x, angles, None))


def test_written_out_attention_equals_torchs_with_gradients() -> None:
    torch.manual_seed(0)
    full = torch.rand(2, 1, 5, 5) > 0.3
    full |= torch.eye(5, dtype=torch.bool)
    for mask in (None, full):
        ours, theirs = ([torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3)] for _ in range(2))
        for a, b in zip(ours, theirs, strict=True):
            b.data.copy_(a.data)
        got = attend(*ours, mask)
        want = F.scaled_dot_product_attention(*theirs, attn_mask=mask, is_causal=mask is None)
        torch.testing.assert_close(got, want)
        got.square().sum().backward()
        want.square().sum().backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_ragged_cache_steps_equal_the_whole_sequence() -> None:
    """Rows of different lengths continue where each of them ends."""
    torch.manual_seed(0)
    attention = Attention(32, 4, 2).eval()
    x, lengths = torch.randn(2, 6, 32), torch.tensor([4, 2])
    whole = attention(x, rotary(torch.arange(6).expand(2, 6), 8), None)
    cache = KVCache(1, 2, 2, 8, 8, torch.float32, torch.device("cpu"))
    cache.begin(4, lengths)
    attention(x[:, :4], rotary(cache.positions(4), 8), None, cache)
    cache.end()
    for step in range(2):
        at = lengths + step
        angles, mask = rotary(cache.positions(1), 8), cache.mask(1)
        cache.begin(1)
        got = attention(x[torch.arange(2), at][:, None], angles, mask, cache)
        cache.end()
        torch.testing.assert_close(got[:, 0], whole[torch.arange(2), at])


def test_cache_selects_rows_and_refuses_to_overflow() -> None:
    cache = KVCache(1, 2, 1, 3, 2, torch.float32, torch.device("cpu"))
    cache.begin(2)
    cache.write(0, torch.ones(2, 1, 2, 2) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), torch.ones(2, 1, 2, 2))
    cache.end()
    picked = cache.select(torch.tensor([1, 1, 0]))
    assert picked.tensors["keys"][0][:, 0, 0, 0].tolist() == [2.0, 2.0, 1.0]
    assert picked.lengths.tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="holds 3 positions and 4"):
        cache.begin(2)
