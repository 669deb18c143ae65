"""One attention for every head layout.

    heads = kv_heads          1 < kv_heads < heads        kv_heads = 1
    q q q q                   q q q q                     q q q q
    | | | |   multi-head      \\/  \\/   grouped-query       \\ \\/ /   multi-query
    k k k k                   k   k                         k

Grouped-query attention: 2305.13245. Dimensions: B rows, T new positions, S keys, D width, H heads, G key/value
heads, d = D / H.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.nn.backends import KERNELS, attend
from vall_e.nn.cache import KVCache
from vall_e.nn.rope import rotate


class Attention(nn.Module):
    """Self-attention with rotary positions.

    Args:
        dim: D.
        heads: H, divides D.
        kv_heads: G, divides H.

    Attributes:
        backend: the kernel (see ``vall_e.nn.backends``) of forwards without a past. New positions behind a past, ragged
            from row to row, are for torch's own choice.
    """

    backend = "auto"

    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.q = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.k = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(heads * self.head_dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """``x`` [B, T, D] → [B, T, D].

        Args:
            angles: ``rotary`` of the T positions.
            mask: bool [B, 1, T, S], True where a position may look; None is causal over the T positions.
            cache: past keys and values; the new ones are written to it, and then S counts both.
            layer: this layer's place in the cache.
        """
        batch, length, _ = x.shape
        q = rotate(self.q(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2), *angles)
        k = rotate(self.k(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2), *angles)
        v = self.v(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        share = self.heads // self.kv_heads
        if length == 1 and cache is not None:  # the heads of a group become positions of one head: no copy of k and v
            q = q.reshape(batch, self.kv_heads, share, self.head_dim)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            out = out.reshape(batch, self.heads, 1, self.head_dim)
        else:
            backend = self.backend if cache is None or cache.empty else "auto"
            k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
            out = attend(q, k, v, mask, backend)
        return self.o(out.transpose(1, 2).reshape(batch, length, -1))


def use_attention(module: nn.Module, backend: str) -> None:
    """Let all attention inside ``module`` be computed by ``backend``, a name in ``vall_e.nn.backends.KERNELS``."""
    if backend not in KERNELS:
        raise ValueError(f"there is no attention {backend!r}: take one of {', '.join(KERNELS)}")
    for child in module.modules():
        if isinstance(child, Attention):
            child.backend = backend
