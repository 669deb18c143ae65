"""BitNet b1.58 (2402.17764): Llama's blocks with ternary linear layers."""

from __future__ import annotations

from vall_e.backbones.llama import Llama
from vall_e.family import ModelConfig
from vall_e.nn.bitlinear import use_linear


class Bitnet(Llama):
    """See ``vall_e.backbones.base.Backbone`` and ``vall_e.nn.bitlinear``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        use_linear(self.blocks, "ternary")
