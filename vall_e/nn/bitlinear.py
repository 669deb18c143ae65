"""Linear layers of three weights: -1, 0 and 1 times one scale (BitNet b1.58, 2402.17764, section 2).

Inputs are normalised without learned scales (the sub-norm of BitNet, 2310.11453, section 2.1: the layer before may
have any scale, and a dense layer's names and weights stay what they are) and rounded to 8 bits per position.
Dimensions: I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5
PER_BYTE = 4


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` [O, I] as values -1, 0, 1 of the same dtype, and their scale (scalar), the mean of |weight|."""
    scale = weight.abs().mean().clamp(min=EPS)
    return (weight / scale).round().clamp(-1, 1), scale


def eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` [..., I] as whole numbers from -127 to 127 of the same dtype, and scales [..., 1] by which they count."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=EPS) / 127
    return (x / scale).round(), scale


def _through(value: Tensor, x: Tensor) -> Tensor:
    """The value of the one with the gradient of the other: the straight-through estimator (1308.3432)."""
    return value.detach() + (x - x.detach())


def _input(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised and rounded ``x``, of its dtype with the gradient of the normalised one, and float32 scales; see
    ``eight_bits``."""
    normal = F.rms_norm(x.float(), x.shape[-1:], eps=EPS)
    whole, scale = eight_bits(normal.detach())
    return _through(whole, normal / scale).to(x.dtype), scale


def _output(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    y = (y * scale).to(y.dtype)
    return y if bias is None else y + bias


class BitLinear(nn.Linear):
    """A linear layer trained for ternary weights: latent weights in full, used as -1, 0, 1 times their mean size.

    Products are of whole numbers and exact in bfloat16; the scales come after them. Gradients pass as if nothing had
    been rounded.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> BitLinear:
        """With the parameters of ``linear``, not copies of them."""
        out = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        out.weight, out.bias = linear.weight, linear.bias
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] → [..., O]."""
        whole, step = _input(x)
        values, scale = ternary(self.weight.detach())
        return _output(F.linear(whole, _through(values, self.weight / scale)), step * scale, self.bias)


class PackedBitLinear(nn.Module):
    """A ``BitLinear`` for inference: four weights in a byte, in memory and in the state dict.

    Buffers:
        packed: uint8 [O, ceil(I / 4)], weight 4 j + i of a row in bits 2 i and 2 i + 1 of byte j, plus one.
        scale: float32 scalar.
    """

    def __init__(self, linear: BitLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        values, scale = ternary(linear.weight.detach())
        values = F.pad(values, (0, -self.in_features % PER_BYTE)) + 1
        values = values.to(torch.uint8).unflatten(1, (-1, PER_BYTE))
        self.register_buffer("packed", (values << _shifts(values.device)).sum(-1, dtype=torch.uint8))
        self.register_buffer("scale", scale.float())
        self.bias = linear.bias

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The values -1, 0, 1 [O, I]."""
        values = (self.packed[..., None] >> _shifts(self.packed.device)) & 3
        return (values.flatten(1)[:, : self.in_features].to(dtype)) - 1

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] → [..., O]."""
        whole, step = _input(x)
        return _output(F.linear(whole, self.weight(whole.dtype)), step * self.scale, self.bias)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 2 * PER_BYTE, 2, dtype=torch.uint8, device=device)


def use_linear(module: nn.Module, kind: str) -> None:
    """Swap the linear layers inside ``module``, in place.

    Args:
        kind: ``dense`` leaves all as it is; ``ternary`` turns ``nn.Linear`` into ``BitLinear`` on the same parameters;
            ``packed`` turns ``BitLinear`` into ``PackedBitLinear``, for inference.
    """
    if kind == "dense":
        return
    source, make = {"ternary": (nn.Linear, BitLinear.of), "packed": (BitLinear, PackedBitLinear)}[kind]
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is source:
                setattr(parent, name, make(child))
