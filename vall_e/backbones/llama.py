"""Llama (2302.13971, section 2.2): pre-RMSNorm, rotary positions, SwiGLU, grouped key/value heads.

Written here because later backbones share its block; the tests hold it against ``transformers``' Llama with
copied weights. Dimensions: B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vall_e.backbones.base import Backbone
from vall_e.family import ModelConfig
from vall_e.nn.attention import Attention
from vall_e.nn.cache import Cache, KVCache
from vall_e.nn.feedforward import SwiGLU
from vall_e.nn.masks import Mask, visible
from vall_e.nn.rope import rotary


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + feedforward(norm(x))``; dropout on both branches.

    Args:
        attention: what mixes positions, [B, T, D] → [B, T, D]; it also gets whatever else ``forward`` gets.
    """

    def __init__(self, config: ModelConfig, attention: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.attention = attention
        self.feedforward_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.feedforward = SwiGLU(config.dim, config.ff_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), *context))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class Llama(Backbone):
    """See ``vall_e.backbones.base.Backbone``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(
            Block(config, Attention(config.dim, config.heads, config.kv_heads)) for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.initialise(("attention.o.weight", "feedforward.down.weight"))

    def states(
        self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: Cache | None = None
    ) -> Iterator[Tensor]:
        angles = rotary(positions, self.config.dim // self.config.heads, self.config.rope.base)
        seen = visible(mask, x.shape[1], cache, None, x.device)
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, seen, cache, layer)
            yield x

    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        config = self.config
        return KVCache(config.layers, rows, config.kv_heads, size, config.dim // config.heads, dtype, device)
