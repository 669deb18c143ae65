"""One attention for every head layout.

    heads = kv_heads          1 < kv_heads < heads        kv_heads = 1
    q q q q                   q q q q                     q q q q
    | | | |   multi-head      \\/  \\/   grouped-query       \\ \\/ /   multi-query
    k k k k                   k   k                         k

Grouped-query attention: 2305.13245. Dimensions: B rows, T new positions, S keys, D width, H heads, G key/value
heads, d = D / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.nn.cache import KVCache, RingCache
from vall_e.nn.rope import rotate


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` for ``q`` [B, H, T, d] and ``k``, ``v`` [B, H, S, d] → [B, H, T, d].

    ``mask`` is bool [B or 1, 1, T, S], None is causal. On a CPU with gradients the products are written out: torch's
    fused kernel is three to five times slower there in bfloat16 (2.8, 21 rows of 113 positions: 44 against 13 ms).
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
    return scores.softmax(-1) @ v


def attend_grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``attend`` with the heads of ``q`` [B, H, T, d] in groups that share ``k``, ``v`` [B, G, S, d] → [B, H, T, d]."""
    batch, heads, length, dim = q.shape
    if length == 1:  # the heads of a group become positions of one head: no copy of k and v
        out = F.scaled_dot_product_attention(q.reshape(batch, k.shape[1], -1, dim), k, v, attn_mask=mask)
        return out.reshape(batch, heads, 1, dim)
    share = heads // k.shape[1]
    return attend(q, k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1), mask)


class Attention(nn.Module):
    """Self-attention.

    Args:
        dim: D.
        heads: H, divides D.
        kv_heads: G, divides H.
        bias: of all four projections.
    """

    def __init__(self, dim: int, heads: int, kv_heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.q = nn.Linear(dim, heads * self.head_dim, bias=bias)
        self.k = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.v = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.o = nn.Linear(heads * self.head_dim, dim, bias=bias)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | RingCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """``x`` [B, T, D] → [B, T, D].

        Args:
            angles: ``rotary`` of the T positions; None turns nothing.
            mask: bool [B, 1, T, S], True where a position may look; None is causal over the T positions.
            cache: past keys and values; the new ones are written to it, and then S counts both.
            layer: this layer's place in the cache.
        """
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        out = attend_grouped(q, k, v, mask)
        return self.o(out.transpose(1, 2).reshape(batch, length, -1))


class CrossAttention(nn.Module):
    """Attention to keys and values that others have made (2405.05254, section 2.2).

    Args:
        dim: D.
        heads: H, divides D.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.o = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """``x`` [B, T, D] → [B, T, D].

        Args:
            angles: ``rotary`` of the T positions.
            keys, values: [B, G, S, d], the keys turned already; G divides H.
            mask: as of ``Attention``.
        """
        batch, length, _ = x.shape
        q = rotate(self.q(x).view(batch, length, self.heads, -1).transpose(1, 2), *angles)
        return self.o(attend_grouped(q, keys, values, mask).transpose(1, 2).reshape(batch, length, -1))
