"""YOCO (2405.05254, section 2): a self-decoder makes one set of keys and values, a cross-decoder looks them up.

    layers 1 .. n/2      self-decoder: gated retention, or attention to a sliding window; its past has constant size
    layers n/2+1 .. n    cross-decoder: each layer's queries against the one set of keys and values

Prompts need the cross-decoder at their last position only. Dimensions: B rows, T new positions, S positions of past
and present, D width, G key/value heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vall_e.backbones.base import Backbone
from vall_e.backbones.llama import Block
from vall_e.family import ModelConfig
from vall_e.nn.attention import Attention, CrossAttention
from vall_e.nn.cache import JointCache, KVCache, RingCache
from vall_e.nn.masks import Mask, causal, visible
from vall_e.nn.norm import RMSNorm
from vall_e.nn.retention import Retention
from vall_e.nn.rope import rotary, rotate

Angles = tuple[Tensor, Tensor]


class Yoco(Backbone):
    """See ``vall_e.backbones.base.Backbone``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim, heads, groups = config.dim, config.heads, config.kv_heads
        self.head_dim, self.half = dim // heads, config.layers // 2
        self.window = config.yoco.window if config.yoco.self_decoder == "sliding" else None
        mixers = [
            Retention(dim, heads, gated=True) if self.window is None else Attention(dim, heads, groups)
            for _ in range(self.half)
        ]
        mixers += [CrossAttention(dim, heads) for _ in range(self.half)]
        self.blocks = nn.ModuleList(Block(config, mixer) for mixer in mixers)
        self.shared_norm = RMSNorm(dim, eps=config.norm_eps)
        self.k, self.v = (nn.Linear(dim, groups * self.head_dim, bias=False) for _ in range(2))
        self.norm = RMSNorm(dim, eps=config.norm_eps)
        self.initialise(("attention.o.weight", "down.weight"))

    def states(
        self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: JointCache | None = None
    ) -> Iterator[Tensor]:
        angles, shared = self._angles(positions), None if cache is None else cache.parts["shared"]
        for hidden in self._self_decoder(x, angles, mask, cache):
            yield hidden
        keys, values = self._shared(hidden, angles, shared)
        seen = visible(mask, x.shape[1], shared, None, x.device)
        spans = None if shared is None else shared.spans
        yield from self._cross_decoder(hidden, angles, keys, values, seen, spans)

    def prefill(self, x: Tensor, positions: Tensor, mask: Mask | None, cache: JointCache, last: int = 1) -> Tensor:
        angles, shared = self._angles(positions), cache.parts["shared"]
        at = cache.last(last)[..., None]  # [B, last, 1]
        seen = visible(mask, x.shape[1], shared, None, x.device)
        if seen is None:
            seen = causal(x.shape[1], x.shape[1], device=x.device)[None, None]
        seen = seen.expand(len(x), -1, -1, -1).take_along_dim(at[:, None], dim=2)
        *_, x = self._self_decoder(x, angles, mask, cache)
        keys, values = self._shared(x, angles, shared)
        angles = tuple(a.take_along_dim(at[:, None], dim=2) for a in angles)
        *_, x = self._cross_decoder(x.take_along_dim(at, dim=1), angles, keys, values, seen)
        return self.norm(x)

    def _angles(self, positions: Tensor) -> Angles:
        return rotary(positions, self.head_dim, self.config.rope)

    def _self_decoder(self, x: Tensor, angles: Angles, mask: Mask | None, cache: JointCache | None) -> Iterator[Tensor]:
        past, length = None if cache is None else cache.parts["local"], x.shape[1]
        if self.window is None:
            self.past_only(mask)
            context = None if past is None else past.real(length)
        else:
            context = visible(mask, length, past, self.window, x.device)
        for layer, block in enumerate(self.blocks[: self.half]):
            x = block(x, angles, context, past, layer)
            yield x

    def _shared(self, x: Tensor, angles: Angles, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """What the cross-decoder looks up: keys and values [B, G, S, d]."""
        x = self.shared_norm(x)
        keys, values = (f(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for f in (self.k, self.v))
        keys = rotate(keys, *angles)
        return (keys, values) if cache is None else cache.write(0, keys, values)

    def _cross_decoder(
        self,
        x: Tensor,
        angles: Angles,
        keys: Tensor,
        values: Tensor,
        seen: Tensor | None,
        spans: Tensor | None = None,
    ) -> Iterator[Tensor]:
        for block in self.blocks[self.half :]:
            x = block(x, angles, keys, values, seen, spans)
            yield x

    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> JointCache:
        heads, groups, dim = self.config.heads, self.config.kv_heads, self.head_dim
        if self.window is None:
            local = Retention.new_cache(self.half, rows, heads, dim, device)
        else:
            local = RingCache(self.half, rows, groups, self.window, dim, dtype, device)
        return JointCache(rows, device, local=local, shared=KVCache(1, rows, groups, size, dim, dtype, device))
