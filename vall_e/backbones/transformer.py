"""The Transformer (1706.03762) with norms in front of the branches (2002.04745, section 3): sinusoidal positions added
to the input, LayerNorm, GELU, biases; grouped key/value heads as in Llama where they are asked for.

Dimensions: B rows, T positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vall_e.backbones.llama import Block, Llama
from vall_e.family import ModelConfig
from vall_e.nn.attention import Attention
from vall_e.nn.cache import Cache
from vall_e.nn.feedforward import GELU
from vall_e.nn.sinusoid import sinusoid


class Transformer(Llama):
    """See ``vall_e.backbones.base.Backbone``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.dim)

    def block(self) -> Block:
        config = self.config
        attention = Attention(config.dim, config.heads, config.kv_heads, bias=True)
        return Block(config, attention, GELU(config.dim, config.ff_dim), nn.LayerNorm)

    def angles(self, positions: Tensor, cache: Cache | None, dtype: torch.dtype) -> None:
        return None

    def placed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + sinusoid(positions, x.shape[2]).to(x.dtype)
