"""The product of attention, ``softmax(q k^T / sqrt(d)) v``, by whichever kernel.

A kernel says what it can do; what it cannot is refused with the reason, never replaced. Dimensions: B rows, H heads,
T positions, S keys, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention, and what it can do.

    Attributes:
        run: (q, k, v, visible) → [B, H, T, d].
        masks: any mask, not only the plain causal one.
        gradients: it has a backward pass.
        cpu: it runs on a CPU as well as on a GPU.
        half: on a GPU it takes float16 and bfloat16 only.
        package: what must be installed for it.
    """

    run: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    masks: bool = True
    gradients: bool = True
    cpu: bool = True
    half: bool = False
    package: str | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, backend: str = "auto") -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` for ``q`` [B, H, T, d] and ``k``, ``v`` [B, H, S, d] → [B, H, T, d].

    Args:
        visible: bool [B or 1, 1, T, S], True where a position may look; None is causal, and then T = S.
        backend: a name in ``KERNELS``.

    Raises:
        ImportError: the backend's package is not installed.
        ValueError: the backend cannot do what is asked of it.
    """
    kernel = KERNELS[backend]
    if kernel.package is not None and find_spec(kernel.package) is None:
        raise ImportError(
            f"model.attention {backend} needs the package {kernel.package}: pip install 'vall-e-workflow[attention]'"
        )
    problem = _problem(kernel, q, k, v, visible)
    if problem is not None:
        raise ValueError(f"model.attention {backend} {problem}: take auto, or another backend")
    return kernel.run(q, k, v, visible)


def _problem(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> str | None:
    """Why a kernel cannot do this, None if it can."""
    device = q.device.type
    if device != "cuda" and not (kernel.cpu and device == "cpu"):
        return f"does not run on a {device} device"
    if kernel.half and device == "cuda" and q.dtype not in HALF:
        return f"takes float16 and bfloat16 on a GPU, not {q.dtype}"
    if visible is not None and not kernel.masks:
        return "is for causal attention only, and here are parallel rows, segments or a window"
    if not kernel.gradients and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "has no gradients"
    return None


def _eager(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    if visible is None:
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    bias = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill_(~visible, -torch.inf)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
    return scores.softmax(-1) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, kind: SDPBackend | None = None) -> Tensor:
    """torch's fused attention; without ``kind`` torch chooses its kernel."""
    run = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=visible, is_causal=visible is None)
    if kind is None:
        return run()
    with sdpa_kernel(kind):
        return run()


def _auto(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """torch's own choice; on a CPU with gradients the products are written out: torch's fused kernel is three to five
    times slower there in bfloat16 (2.8, 21 rows of 113 positions: 44 against 13 ms)."""
    written_out = q.device.type == "cpu" and torch.is_grad_enabled()
    return (_eager if written_out else _sdpa)(q, k, v, visible)


def _flex(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """FlexAttention (2412.05496), compiled on a GPU; blocks in which nothing is visible are skipped there."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length, keys = q.shape[0], q.shape[2], k.shape[2]
    dense = None if visible is None else visible[:, 0].expand(rows, length, keys)

    def seen(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key if dense is None else dense[row, query, key]

    blocks = create_block_mask(seen, None if dense is None else rows, None, length, keys, device=q.device.type)
    return _flex_function(q.device.type == "cuda")(q, k, v, block_mask=blocks)


@cache
def _flex_function(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    """FlashAttention-2 (2307.08691) of its authors' package."""
    from flash_attn import flash_attn_func

    return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2)


def _xformers(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    """Memory-efficient attention (2112.05682) of xFormers."""
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    heads_last = (x.transpose(1, 2) for x in (q, k, v))
    return memory_efficient_attention(*heads_last, attn_bias=LowerTriangularMask()).transpose(1, 2)


def _sageattention(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    """SageAttention (2410.02367): 8-bit products, for inference."""
    from sageattention import sageattn

    return sageattn(q, k, v, tensor_layout="HND", is_causal=True)


KERNELS: dict[str, Kernel] = {
    "auto": Kernel(_auto),
    "eager": Kernel(_eager),
    "math": Kernel(partial(_sdpa, kind=SDPBackend.MATH)),
    "efficient": Kernel(partial(_sdpa, kind=SDPBackend.EFFICIENT_ATTENTION), cpu=False),
    "flash": Kernel(partial(_sdpa, kind=SDPBackend.FLASH_ATTENTION), masks=False, half=True),
    "cudnn": Kernel(partial(_sdpa, kind=SDPBackend.CUDNN_ATTENTION), masks=False, cpu=False, half=True),
    "flex": Kernel(_flex),
    "flash_attn": Kernel(_flash_attn, masks=False, cpu=False, half=True, package="flash_attn"),
    "xformers": Kernel(_xformers, masks=False, cpu=False, package="xformers"),
    "sageattention": Kernel(
        _sageattention, masks=False, gradients=False, cpu=False, half=True, package="sageattention"
    ),
}
