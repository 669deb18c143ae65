"""All codebook levels of a frame at once: the second version's way in and out of the model.

In: each level's vector goes through a residual feed-forward, and the levels become one vector by learned weights or by
attention over them. Out: a pre-norm feed-forward on the hidden state, and a head a level or one for all; with
attention, the levels of a frame look at one another first.

Dimensions: B rows, T positions, L levels, M positions of any rows, D width, n codes per level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.family import ModelConfig
from vall_e.nn.norm import RMSNorm


class Residual(nn.Module):
    """``x + down(gelu(up(norm(x))))``: [..., D] → [..., D]."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.up = nn.Linear(dim, inner)
        self.down = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class LevelAttention(nn.Module):
    """``x + attention(norm(x))`` among the levels of a frame: [M, L, D] → [M, L, D]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


def _layers(config: ModelConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(config.codebook_layers):
        if config.codebook_mixing == "attention":
            layers.append(LevelAttention(config.dim, config.heads))
        layers.append(Residual(config.dim, config.codebook_dim))
    return nn.Sequential(*layers)


class CodebookEncoder(nn.Module):
    """The levels of a frame as one vector."""

    def __init__(self, config: ModelConfig, levels: int) -> None:
        super().__init__()
        self.level = nn.Embedding(levels, config.dim)
        self.layers = _layers(config)
        self.weights = nn.Parameter(torch.zeros(levels))

    def forward(self, x: Tensor) -> Tensor:
        """Level vectors [M, L, D] → [M, D]; the weights of the levels sum to 1, the scale stays that of a sum."""
        levels = x.shape[1]
        y = self.layers(x + self.level.weight)
        return levels**0.5 * torch.einsum("mld,l->md", y, self.weights.softmax(0))


class CodebookDecoder(nn.Module):
    """Logits of every level from one hidden state, the levels independent of each other's draws."""

    together = True

    def __init__(self, config: ModelConfig, levels: int, codes: int) -> None:
        super().__init__()
        self.codes = codes
        self.level = nn.Embedding(levels, config.dim)
        self.layers = _layers(config)
        self.norm = RMSNorm(config.dim)
        shared = config.code_heads == "one"
        self.heads = nn.ModuleList(nn.Linear(config.dim, codes + 1, bias=False) for _ in range(1 if shared else levels))
        for head in self.heads:
            nn.init.normal_(head.weight, std=config.dim**-0.5)

    def prepare(self, hidden: Tensor) -> Tensor:
        """Hidden states [M, D] → a state a level [M, L, D]."""
        return self.norm(self.layers(hidden[:, None] + self.level.weight))

    def forward(self, states: Tensor, level: int, drawn: list[Tensor]) -> Tensor:
        """What ``prepare`` made, [M, L, D] → logits of ``level`` [M, n], [M, n + 1] on level 0."""
        logits = self.heads[level if len(self.heads) > 1 else 0](states[:, level])
        return logits if level == 0 else logits[:, : self.codes]
