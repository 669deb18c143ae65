"""Linear layers with 8-bit weights, for inference: a quarter of the memory that decoding reads at every step.

Weights are rounded to whole numbers with a scale per output, inputs with a scale per position (absmax, as in LLM.int8,
2208.07339, section 2.1); products of whole numbers are exact, so what a row gets does not depend on its batch.
Dimensions: I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ZERO = 128  # inputs are kept as whole numbers around it, which is what the CPU's instructions multiply


class Int8Linear(nn.Module):
    """What a linear layer (one with a ``weight`` [O, I] and a ``bias``) computes, but for rounding.

    On a CPU inputs are rounded as well (to seven bits where the CPU's sums could overflow otherwise) and torch's
    quantized kernels multiply; elsewhere the weights are widened for each product.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.out_features, self.in_features = weight.shape
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.bias = linear.bias
        self.largest = 127 if torch.cpu._is_vnni_supported() else 63
        self.packed: torch.ScriptObject | None = None
        if weight.device.type == "cpu":
            zeros = torch.zeros(len(scale), dtype=torch.int64)
            whole = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(whole, None)
        else:
            self.register_buffer("whole", (weight / scale[:, None]).round().to(torch.int8), persistent=False)
            self.register_buffer("scale", scale, persistent=False)

    @property
    def bytes(self) -> int:
        """Memory of the weights, with an offset and a scale for each output."""
        return self.out_features * (self.in_features + 8)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """[..., I] → [..., O], added to ``onto`` [..., O] where that is given."""
        out = self._product(x)
        return out if onto is None else out.add_(onto)

    def _product(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.whole.to(x.dtype) * self.scale[:, None].to(x.dtype), self.bias)
        rows = x.reshape(-1, self.in_features).float()
        most = rows.abs().amax(1, keepdim=True).clamp_(min=1e-12)  # of these the quickest by far
        out = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows / most, 1 / self.largest, ZERO, self.packed
        ).mul_(most)
        if self.bias is not None:
            out.add_(self.bias)
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)
