"""Llama's block as inference wants it: fewer and larger products, fewer calls.

Queries, keys and values come from one product, gate and up from another; norms and rotations are written out in the few
operations that they need. A step of a small model is made of calls, not of arithmetic. Dimensions: B rows, T positions,
D width, H heads, G key/value heads, d = D / H, E inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.backbones.llama import Block
from vall_e.nn.attention import Attention, attend_grouped
from vall_e.nn.cache import KVCache
from vall_e.nn.feedforward import SwiGLU
from vall_e.nn.rope import turn


class FusedNorm(nn.Module):
    """``nn.RMSNorm`` in four operations, from its Euclidean length: x / hypot(|x|, sqrt(D eps)) * sqrt(D) w."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        width = norm.weight.numel()
        self.weight = nn.Parameter(norm.weight.detach() * width**0.5, requires_grad=False)
        self.register_buffer("floor", torch.full((), (width * norm.eps) ** 0.5, device=norm.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / torch.hypot(length, self.floor)).to(x.dtype).mul_(self.weight)


class FusedLinear(nn.Module):
    """The outputs of one or more ``nn.Linear``, one after the other: [M, I] → [M, O]."""

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__()
        weights = [layer.weight.detach() for layer in layers]
        self.weight = nn.Parameter(weights[0] if len(weights) == 1 else torch.cat(weights), requires_grad=False)
        bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.mm(x, self.weight.t())
        return out if self.bias is None else out.add_(self.bias)


class FusedBlock(nn.Module):
    """What ``Block`` with ``Attention`` computes in evaluation mode."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, feedforward = block.attention, block.feedforward
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.attention_norm, self.feedforward_norm = FusedNorm(block.attention_norm), FusedNorm(block.feedforward_norm)
        self.backend = attention.backend
        self.qkv, self.o = FusedLinear(attention.q, attention.k, attention.v), FusedLinear(attention.o)
        swiglu = type(feedforward) is SwiGLU
        self.inner = feedforward.gate.out_features if swiglu else None
        self.gate_up = FusedLinear(feedforward.gate, feedforward.up) if swiglu else None
        self.down = FusedLinear(feedforward.down) if swiglu else None
        self.feedforward = None if swiglu else feedforward

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """As of ``Attention``, with ``angles`` for ``turn``: [B, T, D] → [B, T, D]."""
        batch, length, width = x.shape
        x = x.reshape(-1, width)
        heads, turned, dim = self.heads, self.heads + self.kv_heads, self.head_dim
        out = self.qkv(self.attention_norm(x))
        if length == 1:
            out = out.view(batch, -1, 1, dim)
        else:
            out = out.view(batch, length, -1, dim).transpose(1, 2)
        qk, v = out[:, :turned], out[:, turned:]
        if angles is not None:
            qk = turn(qk, *angles)
        q, k = qk[:, :heads], qk[:, heads:]
        backend = self.backend if cache is None or cache.empty else "auto"
        if cache is not None:
            k, v = cache.write(layer, k, v)
        out = attend_grouped(q, k, v, mask, backend)
        out = out if length == 1 else out.transpose(1, 2)
        x = x + self.o(out.reshape(-1, heads * dim))
        y = self.feedforward_norm(x)
        if self.gate_up is None:
            return x.view(batch, length, width) + self.feedforward(y.view(batch, length, width))
        y = self.gate_up(y)
        x = x + self.down(F.silu(y[:, : self.inner]).mul_(y[:, self.inner :]))
        return x.view(batch, length, width)


def can_fuse(block: nn.Module) -> bool:
    """Whether it is a block with plain linear layers and Llama's norms: no adapters, no ternary weights."""
    if type(block) is not Block or type(block.attention) is not Attention:
        return False
    attention, feedforward = block.attention, block.feedforward
    layers = [attention.q, attention.k, attention.v]
    if type(feedforward) is SwiGLU:
        layers += [feedforward.gate, feedforward.up]
    plain = all(type(layer) is nn.Linear and not hasattr(layer, "parametrizations") for layer in layers)
    return plain and type(block.attention_norm) is nn.RMSNorm
