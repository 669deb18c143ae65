"""A model made ready for inference: layers joined, weights in the format that they are read in."""

from __future__ import annotations

import torch
from torch import nn

from vall_e.backbones.fused import FusedLinear
from vall_e.decoding import FORMATS, Weights
from vall_e.memory import give_back
from vall_e.models.vall_e import VallE
from vall_e.nn.cpu import use_step_linear
from vall_e.nn.int8 import Int8Linear

SMALLEST = 64  # narrower layers gain nothing from 8 bits


def use_weights(model: VallE, weights: Weights = "float32") -> VallE:
    """Make ``model`` ready for inference, in place; it can no longer be trained or saved.

    Args:
        weights: ``float32`` changes nothing but speed; ``bfloat16`` and ``float16`` halve what is read and keep the
            cache in that dtype; ``int8`` reads a quarter in the backbone's layers, with everything else in float32.
            Ternary layers and adapters stay what they are.

    Raises:
        ValueError: another format.
    """
    if weights not in FORMATS:
        raise ValueError(f"there is no weight format {weights!r}: take one of {', '.join(FORMATS)}")
    model.eval().requires_grad_(False)
    model.backbone.fuse()
    if weights == "int8":
        _to_int8(model.backbone)
    elif weights != "float32":
        model.to(getattr(torch, weights))
    use_step_linear(model)
    give_back()  # what the layers were before: as much as the model itself, or more
    return model


def _to_int8(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if type(child) in (nn.Linear, FusedLinear) and min(child.weight.shape) >= SMALLEST:
            setattr(module, name, Int8Linear(child))
        else:
            _to_int8(child)


def weight_bytes(model: VallE) -> int:
    """Memory of all parameters and buffers, those of 8-bit layers included."""
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    packed = (layer for layer in model.modules() if isinstance(layer, Int8Linear) and layer.packed is not None)
    return held + sum(layer.bytes for layer in packed)
