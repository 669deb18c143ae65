"""Llama's block as inference wants it: fewer and larger products, fewer calls.

Queries, keys and values come from one product, gate and up from another; norms and rotations are written out in the few
operations that they need. A step of a small model is made of calls, not of arithmetic. Dimensions: B rows, T positions,
D width, H heads, G key/value heads, d = D / H, E inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.backbones.llama import Block
from vall_e.nn.attention import Attention, Watch, attend_grouped
from vall_e.nn.cache import Cache, KVCache
from vall_e.nn.cpu import FEW, BlockWeights, block_step, multiplies, multiply
from vall_e.nn.feedforward import SwiGLU
from vall_e.nn.norm import RMSNorm
from vall_e.nn.rope import turn
from vall_e.nn.unpadded import Unpadded


class FusedNorm(nn.Module):
    """``nn.RMSNorm`` from its Euclidean length: x / hypot(|x|, sqrt(D eps)) * sqrt(D) w.

    Args:
        scaled: False leaves sqrt(D) w to the product behind it (``scale``).
    """

    def __init__(self, norm: nn.RMSNorm, scaled: bool = True) -> None:
        super().__init__()
        width = norm.weight.numel()
        self.weight = nn.Parameter(self.scale(norm), requires_grad=False) if scaled else None
        self.register_buffer("floor", torch.full((), (width * norm.eps) ** 0.5, device=norm.weight.device))

    @staticmethod
    def scale(norm: nn.RMSNorm) -> Tensor:
        """sqrt(D) w, [D]."""
        return norm.weight.detach() * norm.weight.numel() ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            x = x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor)
        else:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
            x = (x / torch.hypot(length, self.floor.float())).to(x.dtype)
        return x if self.weight is None else x.mul_(self.weight)


class FusedLinear(nn.Module):
    """The outputs of one or more ``nn.Linear``, one after the other: [M, I] → [M, O].

    Args:
        scale: [I], by which inputs are multiplied first; None for none.
    """

    def __init__(self, *layers: nn.Linear, scale: Tensor | None = None) -> None:
        super().__init__()
        weight = torch.cat([layer.weight.detach() for layer in layers])
        weight = weight if scale is None else weight * scale
        self.transposed = nn.Parameter(weight.t(), requires_grad=False)  # a view: rows of outputs, as they were
        bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """[O, I]."""
        return self.transposed.t()

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """[M, I] → [M, O], added to ``onto`` [M, O] where that is given."""
        if multiplies(x, self.transposed):
            out = multiply(x, self.weight, onto)
        else:
            out = torch.mm(x, self.transposed) if onto is None else torch.addmm(onto, x, self.transposed)
        return out if self.bias is None else out.add_(self.bias)


class FusedBlock(nn.Module):
    """What ``Block`` with ``Attention`` computes in evaluation mode; ``watch`` as of ``Attention``."""

    watch: Watch | None = None

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, feedforward = block.attention, block.feedforward
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.backend = attention.backend
        self.attention_norm = FusedNorm(block.attention_norm, scaled=False)
        self.qkv = FusedLinear(attention.q, attention.k, attention.v, scale=FusedNorm.scale(block.attention_norm))
        self.o = FusedLinear(attention.o)
        swiglu = type(feedforward) is SwiGLU
        self.feedforward_norm = FusedNorm(block.feedforward_norm, scaled=not swiglu)
        self.inner = feedforward.gate.out_features if swiglu else None
        scale = FusedNorm.scale(block.feedforward_norm)
        self.gate_up = FusedLinear(feedforward.gate, feedforward.up, scale=scale) if swiglu else None
        self.down = FusedLinear(feedforward.down) if swiglu else None
        self.feedforward = None if swiglu else feedforward
        self._weights: BlockWeights | tuple[()] | None = None
        self._bound: tuple[Callable[..., Tensor] | None, ...] | None = None

    def _parts(self) -> tuple[Callable[..., Tensor] | None, ...]:
        """What the modules compute, without the search and the hooks of each call."""
        if self._bound is None:
            modules = (self.attention_norm, self.qkv, self.o, self.feedforward_norm, self.gate_up, self.down)
            self._bound = tuple(None if module is None else module.forward for module in modules)
        return self._bound

    def steps(self, cache: Cache) -> bool:
        """Whether the forward under way goes through ``block_step``: a position of each of a few rows."""
        if cache.spans is None or len(cache.spans) > FEW or self.watch is not None:
            return False
        if self._weights is None:
            self._weights = self._joined() or ()
        return bool(self._weights)

    def _joined(self) -> BlockWeights | None:
        """What ``block_step`` takes; None where a product is another one, or has a bias."""
        products = (self.qkv, self.o, self.gate_up, self.down)
        if not all(type(p) is FusedLinear and p.bias is None and p.weight.dtype == torch.float32 for p in products):
            return None
        if not all(p.weight.is_contiguous() for p in products):
            return None
        floors = torch.stack((self.attention_norm.floor, self.feedforward_norm.floor))
        return BlockWeights(*(p.weight.numpy() for p in products), floors.numpy())

    def _apply(self, *args: Any, **options: Any) -> Self:
        self._weights = None  # they may lie elsewhere now
        return super()._apply(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_weights": None}  # a copy has its own

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | Tensor | None,
        mask: Tensor | None,
        cache: KVCache | None = None,
        layer: int = 0,
        unpadded: Unpadded | None = None,
    ) -> Tensor:
        """As of ``Attention``, with ``angles`` for ``turn``, or the matrices of ``turns``: [B, T, D] → [B, T, D].

        Args:
            unpadded: ``x`` is [1, N, D], rows without their padding; all else is about padded rows.
        """
        shape = batch, length, width = x.shape
        x = x.reshape(-1, width)
        if cache is not None and self.steps(cache) and isinstance(angles, tuple):
            keys, values = (cache.tensors[name][layer] for name in ("keys", "values"))
            return block_step(x, self._weights, angles, keys, values, cache.spans).view(shape)
        attention_norm, qkv, o, feedforward_norm, gate_up, down = self._parts()
        heads, turned, dim = self.heads, self.heads + self.kv_heads, self.head_dim
        out = qkv(attention_norm(x))
        if unpadded is not None:
            out, batch, length = unpadded.spread(out), unpadded.rows, unpadded.length
        if length == 1:
            out = out.view(batch, -1, 1, dim)
        else:
            out = out.view(batch, length, -1, dim).transpose(1, 2)
        qk, v = out.split_with_sizes((turned, self.kv_heads), dim=1)
        if isinstance(angles, Tensor):
            qk = torch.bmm(qk.squeeze(2), angles).unsqueeze(2)
        elif angles is not None:
            qk = turn(qk, *angles)
        q, k = qk.split_with_sizes((heads, self.kv_heads), dim=1)
        backend = self.backend if cache is None or cache.empty else "auto"
        if cache is not None:
            k, v = cache.write(layer, k, v)
        if self.watch is not None:
            self.watch.see(q, k, mask)
        out = attend_grouped(q, k, v, mask, backend, None if cache is None else cache.spans)
        out = out if length == 1 else out.transpose(1, 2)
        x = o(out.reshape(-1, heads * dim) if unpadded is None else unpadded.collect(out), x)
        y = feedforward_norm(x)
        if gate_up is None:
            return x.view(shape) + self.feedforward(y.view(shape))
        y = gate_up(y)
        x = down(F.silu(y[:, : self.inner]).mul_(y[:, self.inner :]), x)
        return x.view(shape)


def can_fuse(block: nn.Module) -> bool:
    """Whether it is a block with plain linear layers and Llama's norms: no adapters, no ternary weights."""
    if type(block) is not Block or type(block.attention) is not Attention:
        return False
    attention, feedforward = block.attention, block.feedforward
    layers = [attention.q, attention.k, attention.v]
    if type(feedforward) is SwiGLU:
        layers += [feedforward.gate, feedforward.up]
    plain = all(type(layer) is nn.Linear and not hasattr(layer, "parametrizations") for layer in layers)
    return plain and type(block.attention_norm) is RMSNorm
