"""Llama (2302.13971, section 2.2): pre-RMSNorm, rotary positions, SwiGLU, grouped key/value heads.

Written here because later backbones share its block; the tests hold it against ``transformers``' Llama with
copied weights. Dimensions: B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.backbones.base import Backbone
from vall_e.family import ModelConfig
from vall_e.nn.attention import Attention
from vall_e.nn.cache import Cache, KVCache
from vall_e.nn.feedforward import SwiGLU
from vall_e.nn.masks import Mask, visible
from vall_e.nn.norm import RMSNorm
from vall_e.nn.rope import rotary, signed, turns
from vall_e.nn.unpadded import Unpadded


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + feedforward(norm(x))``; dropout on both branches.

    Args:
        attention: what mixes positions, [B, T, D] → [B, T, D]; it also gets whatever else ``forward`` gets. None is
            grouped-query attention.
        feedforward: [B, T, D] → [B, T, D]; None is SwiGLU.
        norm: makes a norm of a width; None is RMSNorm.
    """

    def __init__(
        self,
        config: ModelConfig,
        attention: nn.Module | None = None,
        feedforward: nn.Module | None = None,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        norm = norm or partial(RMSNorm, eps=config.norm_eps)
        self.attention_norm = norm(config.dim)
        self.attention = attention or Attention(config.dim, config.heads, config.kv_heads)
        self.feedforward_norm = norm(config.dim)
        self.feedforward = feedforward or SwiGLU(config.dim, config.ff_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), *context))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class Llama(Backbone):
    """See ``vall_e.backbones.base.Backbone``. Subclasses say what a ``block`` is and what turns its keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.fused = False
        self._table: Tensor | None = None
        self._compiled: Callable[..., Tensor] | None = None
        self.blocks = nn.ModuleList(self.block() for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.initialise(("attention.o.weight", "down.weight"))

    def block(self) -> Block:
        """A new block."""
        return Block(self.config)

    def placed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Inputs [B, T, D] with what tells their ``positions``, where attention does not."""
        return x

    def angles(
        self, positions: Tensor, cache: Cache | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor] | Tensor | None:
        """``rotary`` of ``positions`` int64 [B, T]; for fused blocks, ``signed`` and of their dtype, or ``turns``."""
        rope, dim = self.config.rope, self.config.dim // self.config.heads
        if rope.scaling == "dynamic":
            found = rotary(positions, dim, rope, None if cache is None else cache.reach(positions))
        elif cache is None or cache.empty or not self.fused:
            found = rotary(positions, dim, rope)
        else:
            found = self._looked_up(positions, max(cache.known) + positions.shape[1], dtype)
            one = positions.shape[1] == 1 and not self.compiled
            return turns(found) if one and not self.blocks[0].steps(cache) else found
        return tuple(a.to(dtype) for a in signed(found)) if self.fused else found

    def _looked_up(self, positions: Tensor, longest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Angles from a table [P, 2 d] of the positions below a power of two, made once."""
        if self._table is None or len(self._table) < longest or self._table.dtype != dtype:
            every = torch.arange(max(256, 1 << longest.bit_length()), device=positions.device)[None]
            angles = signed(rotary(every, self.config.dim // self.config.heads, self.config.rope))
            self._table = torch.cat(angles, dim=-1)[0, 0].to(dtype)
        return F.embedding(positions, self._table).unsqueeze(1).chunk(2, dim=-1)

    def fuse(self) -> None:
        """Make the blocks faster for inference, in place, where they are plain (``vall_e.backbones.fused``)."""
        from vall_e.backbones.fused import FusedBlock, FusedNorm, can_fuse

        if type(self.norm) is RMSNorm and all(can_fuse(block) for block in self.blocks):
            self.blocks = nn.ModuleList(FusedBlock(block) for block in self.blocks)
            self.norm, self.fused = FusedNorm(self.norm), True

    def states(
        self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: Cache | None = None
    ) -> Iterator[Tensor]:
        x, angles = self.placed(x, positions), self.angles(positions, cache, x.dtype)
        seen = visible(mask, x.shape[1], cache, None, x.device)
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, seen, cache, layer)
            yield x

    def forward(self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: Cache | None = None) -> Tensor:
        if self._compiled is None or cache is None or cache.empty:
            return super().forward(x, positions, mask, cache)
        x, angles = self.placed(x, positions), self.angles(positions, cache, x.dtype)
        return self._compiled(x, angles, visible(mask, x.shape[1], cache, None, x.device), cache)

    def prefill(self, x: Tensor, positions: Tensor, mask: Mask | None, cache: Cache, last: int = 1) -> Tensor:
        real = cache.real(x.shape[1])
        if not self.fused or mask is not None or bool(real.all()):
            return super().prefill(x, positions, mask, cache, last)
        rows = Unpadded.of(real)
        x, angles = rows.collect(self.placed(x, positions))[None], self.angles(positions, cache, x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, None, cache, layer, rows)
        return self.norm(x[0, rows.first[:, None] + cache.last(last)])

    def _step(self, x: Tensor, angles: tuple[Tensor, Tensor] | None, seen: Tensor, cache: KVCache) -> Tensor:
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, seen, cache, layer)
        return self.norm(x)

    def compile_steps(self, backend: str = "inductor") -> None:
        graphs = backend == "inductor" and next(self.parameters()).is_cuda
        mode = "reduce-overhead" if graphs else None  # CUDA graphs
        self._compiled = torch.compile(self._step, fullgraph=True, dynamic=False, backend=backend, mode=mode)
        self.compiled = True

    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        config = self.config
        sizes = (config.layers, rows, config.kv_heads, size, config.dim // config.heads)
        return KVCache(*sizes, dtype, device, static=self.compiled)
