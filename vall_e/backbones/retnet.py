"""RetNet (2307.08621): Llama's block with multi-scale retention in place of attention.

A row's past is one state of constant size per layer. ``config.kv_heads`` does not apply: each head has keys of its
own. Dimensions: B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vall_e.backbones.base import Backbone
from vall_e.backbones.llama import Block
from vall_e.family import ModelConfig
from vall_e.nn.cache import Cache
from vall_e.nn.masks import Mask
from vall_e.nn.norm import RMSNorm
from vall_e.nn.retention import Retention
from vall_e.nn.rope import rotary


class Retnet(Backbone):
    """See ``vall_e.backbones.base.Backbone``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(
            Block(config, Retention(config.dim, config.heads, gated=False)) for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.initialise(("attention.o.weight", "down.weight"))

    def states(
        self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: Cache | None = None
    ) -> Iterator[Tensor]:
        self.past_only(mask)
        angles = rotary(positions, self.config.dim // self.config.heads, self.config.rope)
        real = None if cache is None else cache.real(x.shape[1])
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, real, cache, layer)
            yield x

    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> Cache:
        config = self.config
        return Retention.new_cache(config.layers, rows, config.heads, config.dim // config.heads, device)
