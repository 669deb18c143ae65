"""What a backbone is to the model around it: hidden states in, hidden states out, and what it can do.

Dimensions: B rows, T positions, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from torch import Tensor, nn

from vall_e.family import Capabilities, ModelConfig
from vall_e.nn.attention import Watch, use_attention
from vall_e.nn.bitlinear import use_linear
from vall_e.nn.cache import Cache
from vall_e.nn.masks import Mask


class Backbone(nn.Module, ABC):
    """A stack of layers.

    Subclasses set ``norm``, what the last of the ``states`` goes through, and put what repeats into ``blocks``
    (its matrices are trained by Muon): modules that take hidden states [B, T, D] as their first argument and return
    them, on which layer dropout, ternary layers and adapters can be put.

    Args:
        config: sizes, and ``config.backbone``, this backbone's name in ``family.BACKBONES``.
    """

    norm: nn.Module
    blocks: nn.ModuleList

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def capabilities(self) -> Capabilities:
        return self.config.capabilities

    def forward(self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: Cache | None = None) -> Tensor:
        """``x`` [B, T, D] at rotary ``positions`` int64 [B, T] → normalised hidden states [B, T, D].

        Args:
            mask: None is causal; a backbone that is not bidirectional refuses parallel rows.
            cache: between its ``begin`` and ``end``, see ``vall_e.nn.cache``.
        """
        *_, x = self.states(x, positions, mask, cache)
        return self.norm(x)

    def prefill(self, x: Tensor, positions: Tensor, mask: Mask | None, cache: Cache, last: int = 1) -> Tensor:
        """What ``forward`` has at each row's ``last`` positions that are no padding, [B, last, D]; with less work where
        it can."""
        return self(x, positions, mask, cache).take_along_dim(cache.last(last)[..., None], dim=1)

    @abstractmethod
    def states(
        self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: Cache | None = None
    ) -> Iterator[Tensor]:
        """What ``forward`` has after each layer, [B, T, D], not yet normalised."""

    def past_only(self, mask: Mask | None) -> None:
        """Raises ValueError for a mask that is more than causal, which ``states`` cannot honour."""
        if mask is not None:
            raise ValueError(f"{self.config.backbone} sees the past only: parallel rows need model.bidirectional: flip")

    @abstractmethod
    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> Cache:
        """An empty cache for ``rows`` rows of up to ``size`` positions."""

    def fuse(self) -> None:
        """Make the layers faster for inference, in place, where that can be done; what they compute stays."""
        return

    compiled = False  # steps run compiled, over a cache of static shapes

    def compile_steps(self, backend: str = "inductor") -> None:
        """Compile the step that decoding repeats, on its first use for each number of rows.

        Args:
            backend: of ``torch.compile``.

        Raises:
            ValueError: the backbone's steps cannot be compiled.
        """
        raise ValueError(f"{self.config.backbone} cannot be compiled for decoding: take llama, mixtral or transformer")

    def auxiliary(self, real: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Losses of the backbone's own after a forward in training, each with its weight: name → (weight, scalar).

        Args:
            real: bool [B, T], positions of that forward that are no padding.
        """
        return {}

    @contextmanager
    def watched(self) -> Iterator[Watch | None]:
        """Inside, the last layer that attends tells what it attends to in each forward; None where none does."""
        layers = [layer for layer in self.blocks.modules() if hasattr(type(layer), "watch")]
        if not layers:
            yield None
            return
        layers[-1].watch = watch = Watch()
        try:
            yield watch
        finally:
            del layers[-1].watch

    def initialise(self, outputs: tuple[str, ...]) -> None:
        """Normal weights of fan-in scale; matrices whose names end as in ``outputs`` (the last of a residual branch)
        are smaller by the square root of the number of branches, so that depth does not raise the variance; zero
        biases."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
                if name.endswith(outputs):
                    parameter.data.mul_((2 * self.config.layers) ** -0.5)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)


def build_backbone(config: ModelConfig) -> Backbone:
    """The backbone that ``config.backbone`` names: the class of that name, capitalised, in the module of that name;
    with the kernel of attention and the linear layers that the configuration asks for, flipped for parallel rows if it
    says so."""
    backbone = getattr(import_module(f"vall_e.backbones.{config.backbone}"), config.backbone.capitalize())(config)
    use_attention(backbone, config.attention)
    use_linear(backbone.blocks, config.linear)
    return backbone if config.bidirectional == "native" else import_module("vall_e.backbones.flip").Flip(backbone)
