"""From hidden states to logits. Dimensions: M positions, D width, L levels, n codes per level."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.nn.norm import RMSNorm

NOWHERE = -1e9  # a score of probability 0 that a row of nothing but padding survives without NaN


class LevelHeads(nn.Module):
    """A linear head per level, or one for all; level 0 has one more output, the stop token n.

    Attributes:
        together: all levels of a frame are read off one position.

    Args:
        shared: one head: the hidden state knows the level from the segments of its row.
    """

    together = False

    def __init__(self, dim: int, levels: int, codes: int, *, shared: bool = False) -> None:
        super().__init__()
        self.codes = codes
        sizes = [codes + 1] if shared else [codes + (level == 0) for level in range(levels)]
        self.heads = nn.ModuleList(nn.Linear(dim, size, bias=False) for size in sizes)
        for head in self.heads:
            nn.init.normal_(head.weight, std=dim**-0.5)

    def prepare(self, hidden: Tensor) -> Tensor:
        """What ``forward`` reads, from hidden states [M, D]."""
        return hidden

    def forward(self, hidden: Tensor, level: int, drawn: list[Tensor]) -> Tensor:
        """``hidden`` [M, D] → logits [M, n] (n + 1 on level 0); what was ``drawn`` on the levels before is not read."""
        logits = self.heads[level if len(self.heads) > 1 else 0](hidden)
        return logits if level == 0 else logits[:, : self.codes]


class TiedHeads(nn.Module):
    """Heads whose weights are the rows of the response's codes in the token tables (1608.05859); stop has its own.

    Args:
        tables: L tables [2n + 2, D] of the model, owned by it.
    """

    together = False

    def __init__(self, tables: nn.ModuleList, codes: int) -> None:
        super().__init__()
        self.codes = codes
        self.stop = nn.Parameter(torch.randn(1, tables[0].embedding_dim) * tables[0].embedding_dim ** -0.5)
        self._tables = [tables]  # in a list: the model owns them, this module must not register them again

    def prepare(self, hidden: Tensor) -> Tensor:
        """As of ``LevelHeads``."""
        return hidden

    def forward(self, hidden: Tensor, level: int, drawn: list[Tensor]) -> Tensor:
        """As of ``LevelHeads``."""
        weight = self._tables[0][level].weight[self.codes + 1 : 2 * self.codes + 1] * hidden.shape[-1] ** -0.5
        return F.linear(hidden, torch.cat((weight, self.stop)) if level == 0 else weight)


class DurationHead(nn.Module):
    """How long the response will be, read at its START: log of its frames (as the mask of its row lets START see
    nothing of the response, it cannot count them)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        nn.init.constant_(self.linear.bias, 4.0)  # exp(4): about a second

    def forward(self, hidden: Tensor) -> Tensor:
        """``hidden`` [M, D] → log frames [M]."""
        return self.linear(hidden)[:, 0]


class DepthHead(nn.Module):
    """A frame's levels one after the other from one hidden state.

    Level l > 0 reads the hidden state and the codes just drawn for the levels before it (the depth transformer of
    RQ-Transformer, 2203.01941, section 3.2, with attention replaced by a sum, which suits few levels).

    Args:
        dim: D.
        inner: width of the feed-forward layers.
        layers: how many of them.
    """

    together = True

    def __init__(self, dim: int, inner: int, layers: int, levels: int, codes: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, codes + 1, bias=False)
        self.tables = nn.ModuleList(nn.Embedding(codes, dim) for _ in range(levels - 1))
        self.level = nn.Embedding(levels, dim)
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(layers))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim)) for _ in range(layers)
        )
        self.final = RMSNorm(dim)
        self.rest = nn.ModuleList(nn.Linear(dim, codes, bias=False) for _ in range(levels - 1))
        for head in (self.first, *self.rest):
            nn.init.normal_(head.weight, std=dim**-0.5)
        for table in (*self.tables, self.level):
            nn.init.normal_(table.weight, std=0.5)

    def prepare(self, hidden: Tensor) -> Tensor:
        """As of ``LevelHeads``."""
        return hidden

    def forward(self, hidden: Tensor, level: int, drawn: list[Tensor]) -> Tensor:
        """``hidden`` [M, D] and codes int64 [M] of the levels before → logits [M, n] (n + 1 on level 0)."""
        if level == 0:
            return self.first(hidden)
        x = hidden + self.level.weight[level]
        for table, codes in zip(self.tables, drawn, strict=False):
            x = x + table(codes)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.rest[level - 1](self.final(x))


class AlignmentHead(nn.Module):
    """Which phone is being spoken: attention from response frames to the text, trained by what is known of it.

    A guide in training (guided attention, 1710.08969, section 4): frames learn early where in the text they are, and a
    layer later which phone stands there. A small model on little data is slow to find either from codes alone, and a
    place can be told by counting, without ever looking at the phone. Later the place ranks what was decoded
    (``vall_e.generation.alignment``).

    Args:
        dim: D.
        phones: V, ids of the text.
        width: of keys and queries.
    """

    def __init__(self, dim: int, phones: int, width: int = 64) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.query = nn.Linear(dim, width, bias=False)
        self.key = nn.Linear(dim, width, bias=False)
        self.phone = nn.Linear(dim, phones, bias=False)
        nn.init.zeros_(self.phone.weight)

    def forward(self, hidden: Tensor, text: Tensor) -> Tensor:
        """``hidden`` [B, T, D] and ``text`` bool [B, S], slots that hold text, S ≤ T → log p [B, T, S] in nats."""
        x = self.norm(hidden)
        scores = self.query(x) @ self.key(x[:, : text.shape[1]]).transpose(1, 2)
        scores = scores.float() * self.key.out_features**-0.5
        return scores.masked_fill(~text[:, None], NOWHERE).log_softmax(-1)

    def place_loss(self, hidden: Tensor, text: Tensor, spoken: Tensor) -> Tensor:
        """Mean over frames of -log p(one of the slots that may be spoken), in nats.

        Args:
            hidden, text: as of ``forward``.
            spoken: int64 [B, 2, T], see ``Packed``.
        """
        known, inside = _spoken(spoken, text.shape[1])
        return -self(hidden, text)[known].masked_fill(~inside, -torch.inf).logsumexp(-1).mean()

    def phone_loss(self, hidden: Tensor, symbol: Tensor, spoken: Tensor) -> Tensor:
        """Mean over frames of -log p(one of the phones in those slots), in nats.

        Args:
            hidden: [B, T, D].
            symbol: int64 [B, S], what stands in each slot.
            spoken: as of ``place_loss``.
        """
        known, inside = _spoken(spoken, symbol.shape[1])
        log_p = self.phone(F.rms_norm(hidden[known], hidden.shape[-1:])).float().log_softmax(-1)
        ids = symbol[:, None].expand(-1, known.shape[1], -1)[known]
        there = torch.zeros_like(log_p).scatter_add_(1, ids, inside.to(log_p.dtype)) > 0
        return -log_p.masked_fill(~there, -torch.inf).logsumexp(-1).mean()


def _spoken(spoken: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Of which frames it is known what is spoken, bool [B, T], and the slots that may be it in each, bool [M, S]."""
    first, last = spoken[:, 0, :, None], spoken[:, 1, :, None]
    slot, known = torch.arange(slots, device=spoken.device), spoken[:, 0] >= 0
    return known, ((slot >= first) & (slot <= last))[known]


def codebook_init(weight: Tensor, codebook: Tensor, std: float, generator: torch.Generator) -> None:
    """Start the rows of ``weight`` [n, D] from ``codebook`` [n, d], standardised and turned into D dimensions.

    Distances between codes survive a random projection (Johnson-Lindenstrauss), so codes that sound alike start
    alike; the scale becomes ``std``.
    """
    centred = F.normalize(codebook - codebook.mean(0), dim=1) if codebook.std() == 0 else codebook - codebook.mean(0)
    spread = centred / centred.std().clamp(min=1e-8)
    projection = torch.randn(codebook.shape[1], weight.shape[1], generator=generator) / codebook.shape[1] ** 0.5
    with torch.no_grad():
        weight.copy_(spread.cpu().float() @ projection * std)
