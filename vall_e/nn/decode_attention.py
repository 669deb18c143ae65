"""Attention of one new position a row to that row's past, in loops of its own on a CPU.

torch's fused kernel works on blocks of queries. With a single one it reads keys and values at half of what memory
gives, and ragged rows up to the longest of them behind a mask; here every row reads what it has, once, heads of a group
together. Rows do not see each other: what one gets is the same, bit for bit, alone and in any batch. Dimensions: B
rows, H heads, G key/value heads, S capacity, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


def suits(keys: Tensor, rows: int) -> bool:
    """Whether ``attend_one`` can and should look at ``keys`` [C, G, S, d] of ``rows`` rows: float32 on a CPU for which
    there is a kernel, no gradients wanted, and heads enough for all threads."""
    if keys.device.type != "cpu" or keys.dtype != torch.float32 or torch.is_grad_enabled():
        return False
    return rows * keys.shape[1] >= torch.get_num_threads() and _kernel() is not None


def attend_one(q: Tensor, keys: Tensor, values: Tensor, spans: Tensor) -> Tensor:
    """Row b of ``q`` float32 [B, H, 1, d] attends to its first ``spans[b]`` (int64 [B]) slots → [B, H, 1, d].

    Args:
        keys, values: float32 [C, G, S, d], contiguous, of which the first B rows are looked at; G divides H.
    """
    from vall_e.nn.decode_kernel import use_threads

    q = q.squeeze(2).contiguous()
    out = torch.empty_like(q)
    use_threads(torch.get_num_threads())
    _kernel()(q.numpy(), keys.numpy(), values.numpy(), spans.numpy(), out.numpy())
    return out.unsqueeze(2)


@cache
def _kernel() -> Callable[..., None] | None:
    from vall_e.nn.decode_kernel import compiled

    return compiled()
