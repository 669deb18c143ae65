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

from vall_e.nn.backends import KERNELS, attend
from vall_e.nn.cache import KVCache, RingCache
from vall_e.nn.cpu import attend_one
from vall_e.nn.rope import rotate


def attend_grouped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str = "auto", spans: Tensor | None = None
) -> Tensor:
    """``attend`` with the heads of ``q`` [B, H, T, d] in groups that share ``k``, ``v`` [B, G, S, d] → [B, H, T, d].

    Args:
        spans: of a step, in place of ``mask`` and ``backend`` (see ``Cache.spans``).
    """
    if spans is not None:
        return attend_one(q, k, v, spans)
    batch, heads, length, dim = q.shape
    if length == 1:  # the heads of a group become positions of one head: no copy of k and v
        out = F.scaled_dot_product_attention(q.reshape(batch, k.shape[1], -1, dim), k, v, attn_mask=mask)
        return out.reshape(batch, heads, 1, dim)
    share = heads // k.shape[1]
    return attend(q, k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1), mask, backend)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """How the heads of ``q`` [B, H, T, d] attend to ``k`` [B, G, S, d]: probabilities float32 [B, H, T, S].

    Args:
        mask: bool, broadcast to [B, H, T, S]; None is causal, the last of T positions seeing all S.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5
    if mask is None:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril(scores.shape[3] - scores.shape[2])
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)


class Watch:
    """What an attention layer attends to in a forward (see ``Backbone.watched``).

    Attributes:
        weights: float32 [B, H, T, S], see ``attention_weights``; None where nothing was seen.
    """

    weights: Tensor | None = None

    def see(self, q: Tensor, k: Tensor, mask: Tensor | None) -> None:
        self.weights = attention_weights(q, k, mask)


class Attention(nn.Module):
    """Self-attention.

    Args:
        dim: D.
        heads: H, divides D.
        kv_heads: G, divides H.
        bias: of all four projections.

    Attributes:
        backend: the kernel (see ``vall_e.nn.backends``) of forwards without a past. New positions behind a past, ragged
            from row to row, are for torch's own choice.
        watch: is told what is attended to, while somebody wants to know.
    """

    backend = "auto"
    watch: Watch | None = None

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
        if self.watch is not None:
            self.watch.see(q, k, mask)
        backend = self.backend if cache is None or cache.empty else "auto"
        out = attend_grouped(q, k, v, mask, backend, None if cache is None else cache.spans)
        return self.o(out.transpose(1, 2).reshape(batch, length, -1))


class CrossAttention(nn.Module):
    """Attention to keys and values that others have made (2405.05254, section 2.2).

    Args:
        dim: D.
        heads: H, divides D.

    Attributes:
        watch: as of ``Attention``.
    """

    watch: Watch | None = None

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.o = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        spans: Tensor | None = None,
    ) -> Tensor:
        """``x`` [B, T, D] → [B, T, D].

        Args:
            angles: ``rotary`` of the T positions.
            keys, values: [B, G, S, d], the keys turned already; G divides H.
            mask: as of ``Attention``.
            spans: as of ``attend_grouped``.
        """
        batch, length, _ = x.shape
        q = rotate(self.q(x).view(batch, length, self.heads, -1).transpose(1, 2), *angles)
        if self.watch is not None:
            self.watch.see(q, keys, mask)
        out = attend_grouped(q, keys, values, mask, spans=spans)
        return self.o(out.transpose(1, 2).reshape(batch, length, -1))


def use_attention(module: nn.Module, backend: str) -> None:
    """Let all attention inside ``module`` be computed by ``backend``, a name in ``vall_e.nn.backends.KERNELS``."""
    if backend not in KERNELS:
        raise ValueError(f"there is no attention {backend!r}: take one of {', '.join(KERNELS)}")
    for child in module.modules():
        if isinstance(child, Attention):
            child.backend = backend
