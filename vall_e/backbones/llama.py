"""Llama (2302.13971, section 2.2): pre-RMSNorm, rotary positions, SwiGLU, grouped key/value heads.

Written here because later backbones share its block; the tests hold it against ``transformers``' Llama with
copied weights. Dimensions: B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vall_e.config import ModelConfig
from vall_e.nn.attention import Attention
from vall_e.nn.cache import KVCache
from vall_e.nn.feedforward import SwiGLU
from vall_e.nn.rope import rotary


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + feedforward(norm(x))``; dropout on both branches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.attention = Attention(config.dim, config.heads, config.kv_heads)
        self.feedforward_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.feedforward = SwiGLU(config.dim, config.ff_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), angles, mask, cache, layer))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class Llama(nn.Module):
    """See ``vall_e.backbones.base.Backbone``."""

    bidirectional = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
                if name.endswith(("attention.o.weight", "feedforward.down.weight")):
                    parameter.data.mul_((2 * self.config.layers) ** -0.5)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        *_, x = self.states(x, positions, mask, cache)
        return self.norm(x)

    def states(
        self, x: Tensor, positions: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Iterator[Tensor]:
        angles = rotary(positions, self.config.dim // self.config.heads, self.config.rope_base)
        if cache is not None:
            cache.begin(x.shape[1])
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, mask, cache, layer)
            yield x

    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        config = self.config
        return KVCache(config.layers, rows, config.kv_heads, size, config.dim // config.heads, dtype, device)
