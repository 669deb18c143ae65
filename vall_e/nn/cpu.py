"""What a step of decoding is made of, in loops of our own on a CPU: products and attention of a few positions, and
Llama's whole block.

Both read far more memory than they compute with, and torch's kernels are made for the opposite. Its products of a few
rows reach half of what memory gives on an AMD CPU (an eighth, where weights fit into its caches). Its attention, made
for blocks of queries, does with a single one, and reads ragged rows up to the longest of them behind a mask. Rows do
not see each other. Dimensions: B rows, H heads, G key/value heads, S slots, d width of a head, M rows of inputs, I
inputs, O outputs.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

FEW = 8  # rows up to which ``multiply`` is faster than torch's product, by a factor of 1.5 to 4 at eight


def attends(keys: Tensor, rows: int) -> bool:
    """Whether ``attend_one`` can and should look at ``rows`` rows of a buffer ``keys`` [C, G, S, d]: float32 on a CPU,
    neither gradients nor autocast, and heads enough for all threads."""
    return _plain(keys) and rows * keys.shape[1] >= torch.get_num_threads() and _loops() is not None


def attend_one(q: Tensor, keys: Tensor, values: Tensor, spans: Tensor) -> Tensor:
    """Row b of ``q`` float32 [B, H, 1, d] attends to its first ``spans[b]`` (int64 [B]) slots → [B, H, 1, d].

    What a row gets is the same, bit for bit, alone and in any batch.

    Args:
        keys, values: float32 [B, G, S, d], the first S slots of buffers as of ``KVCache``; G divides H.
    """
    q = q.squeeze(2).contiguous()
    out = torch.empty_like(q)
    _ready().attend(q.numpy(), _whole(keys).numpy(), _whole(values).numpy(), spans.numpy(), out.numpy())
    return out.unsqueeze(2)


def _whole(view: Tensor) -> Tensor:
    """The rows [B, G, C, d] of a buffer of C slots that its first slots [B, G, S, d] are a view of: contiguous."""
    rows, groups, _, dim = view.shape
    return view.as_strided((rows, groups, view.stride(1) // dim, dim), view.stride())


def multiplies(x: Tensor, weight: Tensor) -> bool:
    """Whether ``multiply`` can and should take ``x`` [M, I]: a few rows of float32 on a CPU, neither gradients nor
    autocast."""
    if len(x) > FEW or torch.compiler.is_compiling() or weight.dtype != torch.float32:
        return False
    return _plain(x) and _loops() is not None


def multiply(x: Tensor, weight: Tensor, onto: Tensor | None = None) -> Tensor:
    """``x`` [M, I] times ``weight`` [O, I] transposed, added to ``onto`` [M, O] where that is given: float32 [M, O].

    Args:
        weight: contiguous.
    """
    out = x.new_zeros(len(x), len(weight)) if onto is None else onto.clone(memory_format=torch.contiguous_format)
    _ready().multiply(x.contiguous().numpy(), weight.numpy(), out.numpy())
    return out


class BlockWeights(NamedTuple):
    """Llama's block for ``block_step``, float32, as ``vall_e.backbones.fused`` joins its layers; E inner width.

    Attributes:
        qkv, o, gate_up, down: [(H + 2 G) d, D], [D, H d], [2 E, D], [D, E].
        floors: [2], what the two norms add to the Euclidean length of a row (``FusedNorm.floor``).
    """

    qkv: np.ndarray
    o: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray
    floors: np.ndarray


def block_step(
    x: Tensor, weights: BlockWeights, angles: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, spans: Tensor
) -> Tensor:
    """One position of each row through a whole block, one call instead of some forty: float32 [B, D] → [B, D].

    Behind a product that has read more than the processor's caches hold, each call of Python or torch waits for its own
    code and data to come back from memory: a tenth of a millisecond a layer, and as much of all others.

    Args:
        angles: ``signed`` ones, [B, 1, 1, d].
        keys, values: buffers [C, G, S, d] with C at least B, to which the new ones are written.
        spans: int64 [B], slots in use, with the one that is written.
    """
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    buffers = (t.numpy() for t in (*angles, keys, values, spans, out))
    _ready().step(x.numpy(), *weights, *buffers)
    return out


class StepLinear(nn.Linear):
    """``nn.Linear`` that takes a few rows by ``multiply``."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if not (multiplies(rows, self.weight) and self.weight.is_contiguous()):
            return super().forward(x)
        out = multiply(rows, self.weight)
        return (out if self.bias is None else out.add_(self.bias)).view(*x.shape[:-1], self.out_features)


def use_step_linear(module: nn.Module) -> None:
    """Let the plain linear layers inside ``module`` be ``StepLinear``, in place; parameters stay what they are."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = StepLinear


def _plain(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))


def _ready() -> ModuleType:
    """The loops, to run on as many threads as torch."""
    loops = _loops()
    loops.use_threads(torch.get_num_threads())
    return loops


@cache
def _loops() -> ModuleType | None:
    """``vall_e.nn.cpu_loops``, imported when the first step needs it: numba takes a third of a second to import."""
    from vall_e.nn import cpu_loops

    return cpu_loops if cpu_loops.prepare() else None
