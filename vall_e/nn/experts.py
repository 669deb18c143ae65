"""A mixture of feed-forward experts, each position through a few of them.

Dimensions: D width, N experts, K of them active for a position, M positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vall_e.nn.feedforward import SwiGLU


class Experts(nn.Module):
    """The K best SwiGLU experts of each position, weighted by the softmax over those K (2401.04088, section 2.1).

    No expert has a capacity, so what a position gets depends on nothing but itself.

    Args:
        dim: D.
        inner: inner width of an expert.
        count: N.
        active: K.

    Attributes:
        logits: float [..., N], the router's in the last forward in training; for ``balance_loss``.
    """

    def __init__(self, dim: int, inner: int, count: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.router = nn.Linear(dim, count, bias=False)
        self.experts = nn.ModuleList(SwiGLU(dim, inner) for _ in range(count))
        self.logits: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        logits = self.router(x)
        self.logits = logits if self.training else None
        flat = x.reshape(-1, x.shape[-1])
        best, chosen = logits.reshape(len(flat), -1).float().topk(self.active, dim=-1)
        weights = best.softmax(-1)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):  # also for no position at all: its gradient is then 0, not None
            rows, slot = (chosen == index).nonzero(as_tuple=True)
            out = out.index_add(0, rows, (expert(flat[rows]) * weights[rows, slot, None]).to(out.dtype))
        return out.view_as(x)


def balance_loss(logits: Tensor, active: int) -> Tensor:
    """``N * sum_i f_i P_i`` over the experts i (2101.03961, equation 4): f_i is the share of positions that i is
    active for, P_i the router's mean probability for it. K where the load is even, the more the less it is.

    Args:
        logits: float [M, N] of one layer.
        active: K.
    """
    probability = logits.float().softmax(-1)
    chosen = probability.topk(active, dim=-1).indices
    share = torch.zeros_like(probability).scatter_(1, chosen, 1.0).mean(0)
    return logits.shape[1] * (share * probability.mean(0)).sum()
