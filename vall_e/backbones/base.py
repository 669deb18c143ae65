"""What a backbone is to the model around it: hidden states in, hidden states out, and what it can do.

Dimensions: B rows, T positions, S keys, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from vall_e.config import ModelConfig
from vall_e.nn.cache import KVCache


class Backbone(Protocol):
    """A stack of layers.

    Attributes:
        norm: what ``forward`` does to the last of the ``states``.
        bidirectional: it can attend to later positions (NAR needs this).
    """

    norm: nn.Module
    bidirectional: bool

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """``x`` [B, T, D] at ``positions`` int64 [B, T] → normalised hidden states [B, T, D].

        ``mask`` is bool [B, 1, T, S], True where a position may look; None is causal over the T positions.
        """
        ...

    def states(
        self, x: Tensor, positions: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Iterator[Tensor]:
        """What ``forward`` has after each layer, [B, T, D], not yet normalised."""
        ...

    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """An empty cache for ``rows`` rows of up to ``size`` positions."""
        ...


def build_backbone(config: ModelConfig) -> nn.Module:
    """The backbone that ``config.backbone`` names."""
    from vall_e.backbones.llama import Llama

    return {"llama": Llama}[config.backbone](config)
