"""From ids to the backbone's input. Dimensions: B rows, T positions, D width, L levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vall_e.family import KINDS, ModelConfig
from vall_e.models.codebooks import CodebookEncoder
from vall_e.models.packing import Layout, Packed, Place
from vall_e.tasks import NAMES

EMBEDDING_STD = 0.5


class Embeddings(nn.Module):
    """Tables of symbols, segments, codes (one a level), tasks, languages and tones; id 0 of each embeds to zero."""

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        super().__init__()
        dim = config.dim
        self.symbol = _table(layout.symbol_ids, dim)
        self.segment = _table(layout.places, dim)
        self.code = nn.ModuleList(_table(layout.code_ids, dim) for _ in range(layout.levels))
        headers = (len(NAMES), max(1, len(config.languages)), config.tones)
        self.header = nn.ModuleList(_table(1 + n, dim) for n in headers)
        together = KINDS[config.kind].frames and config.kind != "ar-depth"
        self.codebooks = CodebookEncoder(config, layout.levels) if together else None
        self.timestep = nn.Linear(dim, dim) if config.timestep else None

    def forward(self, packed: Packed) -> Tensor:
        """A batch → [B, T, D]."""
        x = self.tokens(packed.symbol, packed.segment, packed.code)
        head = sum(table(packed.header[:, i]) for i, table in enumerate(self.header))
        x = torch.cat((x[:, :1] + head[:, None], x[:, 1:]), dim=1)
        return self._timed(x, packed.segment, packed.masked)

    def output(self, segment: Tensor, code: Tensor, masked: Tensor) -> Tensor:
        """The positions of an output alone: ids int64 [B, T] and [B, L, T], share masked float [B] → [B, T, D]."""
        return self._timed(self.tokens(torch.zeros_like(segment), segment, code), segment, masked)

    def _timed(self, x: Tensor, segment: Tensor, masked: Tensor) -> Tensor:
        if self.timestep is None:
            return x
        at = (segment == Place.MASKED)[..., None]
        return x + at * self.timestep(_waves(masked, x.shape[-1]).to(x.dtype))[:, None]

    def tokens(self, symbol: Tensor, segment: Tensor, code: Tensor) -> Tensor:
        """Ids int64 [B, T], [B, T], [B, L, T] → [B, T, D], without header and timestep."""
        x = self.symbol(symbol) + self.segment(segment)
        if self.codebooks is None:
            for level, table in enumerate(self.code):
                x = x + table(code[:, level])
            return x
        at = code[:, 0] > 0
        vectors = torch.stack([table(code[:, level][at]) for level, table in enumerate(self.code)], dim=1)
        return x.index_put(tuple(at.nonzero().T), self.codebooks(vectors).to(x.dtype), accumulate=True)

    def frames(self, ids: Tensor, segment: int) -> Tensor:
        """Frames of one segment, code ids int64 [B, l, T] of their first l levels → [B, T, D], as ``tokens``."""
        place = self.segment.weight[segment]
        vectors = [table(ids[:, level]) for level, table in zip(range(ids.shape[1]), self.code, strict=False)]
        if self.codebooks is None:
            return sum(vectors[1:], vectors[0] + place)
        batch, _, length = ids.shape
        return self.codebooks(torch.stack(vectors, dim=2).flatten(0, 1)).view(batch, length, -1) + place


def _table(size: int, dim: int) -> nn.Embedding:
    table = nn.Embedding(size, dim, padding_idx=0)
    nn.init.normal_(table.weight, std=EMBEDDING_STD)
    table.weight.data[0].zero_()
    return table


def _waves(share: Tensor, dim: int) -> Tensor:
    """Sines and cosines float [B, D] of a number in 0..1 (1706.03762, section 3.5)."""
    rates = 1000.0 * 10_000.0 ** (-torch.arange(0, dim, 2, device=share.device) / dim)
    angles = share[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :dim]
