"""The model: embeddings, a backbone, heads.

Kinds differ in the rows that they are made of and in their heads (``family.KINDS``), not in the model around them.
Dimensions: B rows, T positions, D width, L levels, n codes per level, M positions of any rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from vall_e.backbones.base import build_backbone
from vall_e.family import KINDS, ModelConfig
from vall_e.models import losses
from vall_e.models.codebooks import CodebookDecoder
from vall_e.models.embeddings import EMBEDDING_STD, Embeddings
from vall_e.models.heads import AlignmentHead, DepthHead, DurationHead, LevelHeads, TiedHeads, codebook_init
from vall_e.models.packing import Layout, Packed, Place
from vall_e.nn.cache import Cache
from vall_e.tasks import SYMBOLS, TASKS, Vocabulary


class VallE(nn.Module):
    """A decoder-only voice model.

    Args:
        config: kind and sizes.
        levels: L of the codec.
        codes: n of the codec.
        phones: size of the tokenizer.
    """

    def __init__(self, config: ModelConfig, levels: int, codes: int, phones: int) -> None:
        super().__init__()
        self.config = config
        self.layout = Layout.of(config, levels, codes, phones)
        self.embeddings = Embeddings(config, self.layout)
        self.backbone = build_backbone(config)
        self.heads = self._code_heads()
        written = {TASKS[task].output for task in config.all_tasks}
        self.symbol_heads = nn.ModuleDict(
            {v: nn.Linear(config.dim, self.layout.size(v), bias=False) for v in SYMBOLS if v in written}
        )
        for head in self.symbol_heads.values():
            nn.init.normal_(head.weight, std=config.dim**-0.5)
        self.alignment = AlignmentHead(config.dim) if config.alignment else None
        self.duration = DurationHead(config.dim) if config.kind == "v2-nar" else None

    def _code_heads(self) -> nn.Module:
        config, layout = self.config, self.layout
        if config.kind == "ar-depth":
            return DepthHead(config.dim, config.depth_dim, config.depth_layers, layout.levels, layout.codes)
        if KINDS[config.kind].frames:
            return CodebookDecoder(config, layout.levels, layout.codes)
        if config.tie_heads:
            return TiedHeads(self.embeddings.code, layout.codes)
        return LevelHeads(config.dim, layout.levels, layout.codes, shared=config.code_heads == "one")

    @property
    def device(self) -> torch.device:
        return self.embeddings.symbol.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.symbol.weight.dtype

    def start_from_codebooks(self, codebooks: Sequence[Tensor], seed: int = 0) -> None:
        """Let the token tables start from the codec's own vectors, L tables float [n, d]."""
        generator = torch.Generator().manual_seed(seed)
        n = self.layout.codes
        for level, book in enumerate(codebooks):
            state = generator.get_state()
            for first in (1, n + 1):
                generator.set_state(state)  # prompt and response start alike
                codebook_init(self.embeddings.code[level].weight[first : first + n], book, EMBEDDING_STD, generator)
            if isinstance(self.heads, DepthHead) and level < self.layout.levels - 1:
                codebook_init(self.heads.tables[level].weight, book, EMBEDDING_STD, generator)

    def hidden(self, packed: Packed) -> Tensor:
        """Hidden states [B, T, D]."""
        return self.backbone(self.embeddings(packed), packed.position, packed.mask())

    def prefill(self, packed: Packed, cache: Cache, last: int = 1) -> Tensor:
        """Hidden states [B, last, D] of each row's last positions; ``cache``, empty before, then holds the rows."""
        x = self.embeddings(packed)
        cache.begin(x.shape[1], packed.lengths)
        out = self.backbone.prefill(x, packed.position, packed.mask(), cache, last)
        cache.end()
        if self.layout.restart:
            cache.origin = packed.response
        return out

    def step(self, codes: Tensor, cache: Cache) -> Tensor:
        """k more response frames int64 [B, l, k] (l levels shown to a causal row) → hidden states [B, k, D]."""
        ids = codes.new_zeros(codes.shape[0], self.layout.levels, codes.shape[2])
        ids[:, : codes.shape[1]] = codes + self.layout.codes + 1
        segment = torch.full_like(ids[:, 0], Place.RESPONSE)
        return self._append(torch.zeros_like(segment), segment, ids, cache)

    def step_symbol(self, symbols: Tensor, vocabulary: Vocabulary, cache: Cache) -> Tensor:
        """One more written symbol of each row, int64 [B] in the vocabulary's ids → hidden states [B, 1, D]."""
        ids = symbols[:, None] + self.layout.first_symbol(vocabulary)
        code = ids.new_zeros(len(ids), self.layout.levels, 1)
        return self._append(ids, torch.full_like(ids, Place.SYMBOL), code, cache)

    def _append(self, symbol: Tensor, segment: Tensor, code: Tensor, cache: Cache) -> Tensor:
        positions = cache.positions(symbol.shape[1])
        cache.begin(symbol.shape[1])
        out = self.backbone(self.embeddings.tokens(symbol, segment, code), positions, None, cache)
        cache.end()
        return out

    def align(self, packed: Packed) -> Tensor:
        """Log p [B, T, S] in nats of the text slot that is spoken in the frame after each position."""
        middle = next(islice(self._states(packed), self._middle, None))
        return self.alignment(middle, text_slots(packed))

    @property
    def _middle(self) -> int:
        """Index of the layer whose states the alignment head reads."""
        return max(1, self.config.layers // 2) - 1

    def _states(self, packed: Packed) -> Iterator[Tensor]:
        return self.backbone.states(self.embeddings(packed), packed.position, packed.mask())

    def loss(
        self,
        packed: Packed,
        label_smoothing: float = 0.0,
        alignment_weight: float = 0.0,
        level_factors: Sequence[float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of the cross entropies of each level and of what is written, in nats, plus alignment's and duration's.

        Args:
            level_factors: weight of each level's loss, relative to the others; None is equal.

        Returns:
            the loss (scalar); per level ``loss.l`` and ``accuracy.l``, per written vocabulary ``loss.v`` and
            ``accuracy.v``, ``alignment`` and ``duration`` where there are any, and in training what the backbone adds
            (``Backbone.auxiliary``; scalars, without gradient).
        """
        states = list(self._states(packed))
        hidden = self.backbone.norm(states[-1])
        found = losses.Found()
        factors = level_factors or (1.0,) * self.layout.levels
        losses.of_codes(found, self.heads, hidden, packed.target, label_smoothing, factors)
        for vocabulary, head in self.symbol_heads.items():
            rows = packed.vocabulary == 1 + SYMBOLS.index(vocabulary)
            losses.of_symbols(found, vocabulary, head, hidden[rows], packed.written[rows], label_smoothing)
        loss = found.mean()
        if self.alignment is not None and bool((packed.spoken >= 0).any()):
            value = self.alignment.loss(states[self._middle], text_slots(packed), packed.spoken)
            loss = loss + alignment_weight * found.note("alignment", value)
        if self.duration is not None:
            loss = loss + found.note("duration", losses.of_duration(self.duration, hidden, packed))
        if self.training:
            real = torch.arange(hidden.shape[1], device=hidden.device) < packed.lengths[:, None]
            for name, (weight, extra) in self.backbone.auxiliary(real).items():
                loss = loss + weight * found.note(name, extra)
        return loss, found.figures


def text_slots(packed: Packed) -> Tensor:
    """Bool [B, S], true where a slot holds text; S is a multiple of 16 that holds the last of it."""
    text = packed.segment == Place.TEXT
    last = int((text * torch.arange(1, text.shape[1] + 1, device=text.device)).max())
    return text[:, : -(-last // 16) * 16]
