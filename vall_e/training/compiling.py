"""Blocks of a backbone, compiled for training."""

from __future__ import annotations

from vall_e.backbones.base import Backbone


def compile_blocks(backbone: Backbone, backend: str = "inductor") -> None:
    """Compile what repeats, in place, for any number of rows and positions; the names of the weights stay.

    A copy of the backbone, such as its moving average, is not compiled.

    Args:
        backend: of ``torch.compile``.
    """
    for block in backbone.blocks:
        block.compile(dynamic=True, backend=backend)
