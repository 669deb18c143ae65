"""Training for early exits (LayerSkip, 2404.16710, section 4.1): layer dropout, and how much each exit's loss counts.

Layers are counted from 0; L is how many there are.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn


def dropout_rates(layers: int, most: float) -> list[float]:
    """``most * (exp(l ln 2 / (L - 1)) - 1)``: from 0 in the first of ``layers`` > 1 layers to ``most`` in the last."""
    return [most * (math.exp(layer * math.log(2) / (layers - 1)) - 1) for layer in range(layers)]


def drop_layers(blocks: nn.ModuleList, most: float) -> None:
    """From now on, in training, a row skips a block with the block's rate; see ``dropout_rates``.

    Args:
        blocks: each takes hidden states [B, T, D] as its first argument and returns them.
    """
    for block, rate in zip(blocks, dropout_rates(len(blocks), most), strict=True):
        block.register_forward_hook(partial(_skip, rate))


def _skip(rate: float, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if not block.training or rate == 0:
        return output
    kept = torch.rand(len(output), device=output.device) >= rate
    return torch.where(kept[:, None, None], output, inputs[0])


def exit_weights(layers: int, scale: float, rotate: int, step: int) -> list[float]:
    """How much the loss of the exit behind each layer counts, in all 1 (section 4.1.2).

    Before normalising, layer l < L - 1 counts ``scale * (0 + ... + l)`` and the last one
    ``L - 1 + scale * (0 + ... + L - 2)``: later exits have more to say.

    Args:
        rotate: every so many layers one exit is trained, another one each step; the last layer always is.
        step: number of the training step.
    """
    sums = [layer * (layer + 1) / 2 for layer in range(layers)]
    raw = [scale * s * ((layer + step) % rotate == 0) for layer, s in enumerate(sums)]
    raw[-1] = layers - 1 + scale * sums[-2]
    return [weight / sum(raw) for weight in raw]
