"""Rotary positions, grouped heads, the cache."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

from vall_e.family import RopeConfig
from vall_e.nn.attention import Attention, attend, attention_weights
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


@pytest.mark.parametrize("length", [1, 3])
def test_weights_are_what_torch_gives_values_that_are_unit_vectors(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, n, t, 8, generator=generator) for n, t in ((4, length), (2, 7)))
    units, repeated = torch.eye(7).expand(2, 4, 7, 7), k.repeat_interleave(2, dim=1)
    mask = torch.arange(7) <= torch.tensor([6, 4])[:, None, None, None] - length + 1 + torch.arange(length)[:, None]
    for seen in (mask, mask[:1]):
        want = F.scaled_dot_product_attention(q, repeated, units, attn_mask=seen)
        torch.testing.assert_close(attention_weights(q, k, seen), want)
    torch.testing.assert_close(attention_weights(q, k, None), attention_weights(q, k, mask[:1]))


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


def _filled(values: list[float], counts: list[int], size: int, *, static: bool = False) -> KVCache:
    """Rows whose keys at position t are value + t / 10, and whose values are the negative of that."""
    cache = KVCache(1, len(values), 1, size, 2, torch.float32, torch.device("cpu"), static=static)
    keys = torch.tensor(values).view(-1, 1, 1, 1) + torch.arange(max(counts)).view(1, 1, -1, 1) / 10
    cache.begin(max(counts), torch.tensor(counts))
    cache.write(0, keys.expand(-1, 1, -1, 2), -keys.expand(-1, 1, -1, 2))
    cache.end()
    return cache


def _held(cache: KVCache) -> list[list[float]]:
    """What each row holds, by its own length; keys and values agree."""
    rows = len(cache.known)
    keys, values = (cache.tensors[name][0][:rows, 0, :, 0] for name in ("keys", "values"))
    assert torch.equal(keys, -values)
    assert cache.lengths.tolist() == cache.known
    return [[round(x, 4) for x in row[:n].tolist()] for row, n in zip(keys, cache.known, strict=True)]


def test_rows_leave_and_join_a_cache_and_it_grows() -> None:
    cache = _filled([1.0, 2.0, 3.0], [2, 1, 2], 3)
    assert _held(cache.select(torch.tensor([2, 2, 0]))) == [[3.0, 3.1], [3.0, 3.1], [1.0, 1.1]]
    cache.keep([0, 2])  # the last one takes the place of the one that left
    assert _held(cache) == [[1.0, 1.1], [3.0, 3.1]]
    cache.extend(_filled([7.0, 8.0], [5, 4], 5), [1, 0, 0])
    assert _held(cache)[1:3] == [[3.0, 3.1], [8.0, 8.1, 8.2, 8.3]]
    assert cache.known == [2, 2, 4, 5, 5]
    cache.keep([4, 0])  # any order
    assert [len(row) for row in _held(cache)] == [5, 2]
    for _ in range(4):
        cache.begin(2)
        cache.write(0, *(sign * torch.full((2, 1, 2, 2), 9.0) for sign in (1, -1)))
        cache.end()
    assert _held(cache)[1] == [1.0, 1.1, *8 * [9.0]]
    cache.rewind([3, 2])
    assert _held(cache) == [[7.0, 7.1, 7.2], [1.0, 1.1]]
    with pytest.raises(ValueError, match="a past that it had"):
        cache.rewind([4, 2])


def test_a_static_cache_refuses_to_overflow_and_attends_to_all_slots_behind_a_mask() -> None:
    cache = _filled([1.0, 2.0], [2, 1], 3, static=True)
    assert cache.mask(1)[:, 0, 0].tolist() == [[True, True, True], [True, True, False]]
    with pytest.raises(ValueError, match="holds 3 positions and 4"):
        cache.begin(2)
    cache.reserve(4)
    cache.begin(2)
    assert _held(cache) == [[1.0, 1.1], [2.0]]
