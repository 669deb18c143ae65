"""Root-mean-square norm (1910.07467), learned on a CPU in fewer passes than torch's own.

Dimensions: D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` of the last of the dimensions [..., D].

    Where a CPU learns in float32, its gradients are written out by hand: torch's own step through each operation of
    the forward, over tensors that are larger than a cache (2.8, 12 x 128 positions of width 256, both passes: 2.4
    against 0.9 ms).
    """

    def forward(self, x: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if learns and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32:
            return _WrittenOut.apply(x, self.weight, self.eps)
        return super().forward(x)


class _WrittenOut(torch.autograd.Function):
    """``y = x r w`` with ``r = (mean(x^2) + eps)^(-1/2)``, and, for the gradient g of y,
    ``dx = r g w - x r^3 mean(g w x)``, ``dw = sum(g x r)`` over all positions."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        context.save_for_backward(x, scale, weight)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, scale, weight = context.saved_tensors
        both, scales = (gradient * x).reshape(-1, len(weight)), scale.reshape(-1)
        of_x = of_weight = None
        if context.needs_input_grad[1]:
            of_weight = torch.mv(both.t(), scales)
        if context.needs_input_grad[0]:
            share = torch.mv(both, weight).mul_(scales**3).div_(-len(weight))
            of_x = (gradient * weight).mul_(scale).addcmul_(x, share.view(scale.shape))
        return of_x, of_weight, None
