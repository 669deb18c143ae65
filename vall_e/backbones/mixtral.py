"""Mixtral (2401.04088, section 2): Llama's blocks, each with a mixture of experts for a feed-forward layer.

Dimensions: B rows, T positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vall_e.backbones.llama import Block, Llama
from vall_e.nn.experts import Experts, balance_loss


class Mixtral(Llama):
    """See ``vall_e.backbones.base.Backbone``; ``config.experts`` says how many there are."""

    def block(self) -> Block:
        config, experts = self.config, self.config.experts
        return Block(config, feedforward=Experts(config.dim, config.ff_dim, experts.count, experts.active))

    def auxiliary(self, real: Tensor) -> dict[str, tuple[float, Tensor]]:
        experts = self.config.experts
        losses = [balance_loss(block.feedforward.logits[real], experts.active) for block in self.blocks]
        return {"balance": (experts.balance_weight, torch.stack(losses).mean())}
