"""The model: embeddings, a backbone, heads.

Kinds differ in the rows that they are made of and in their heads (``family.KINDS``), not in the model around them.
Dimensions: B rows, T positions, D width, L levels, n codes per level, M positions of any rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from types import MappingProxyType

import torch
from torch import Tensor, nn

from vall_e.backbones.base import build_backbone
from vall_e.family import KINDS, LoraConfig, ModelConfig
from vall_e.models import losses
from vall_e.models.codebooks import CodebookDecoder
from vall_e.models.embeddings import EMBEDDING_STD, Embeddings
from vall_e.models.heads import AlignmentHead, DepthHead, DurationHead, LevelHeads, TiedHeads, codebook_init
from vall_e.models.packing import Layout, Packed, Place
from vall_e.nn.cache import Cache
from vall_e.nn.lora import Rows, add_lora, freeze_base, merge_lora
from vall_e.nn.past import Past
from vall_e.tasks import SYMBOLS, TASKS, VOCABULARIES, Vocabulary


class VallE(nn.Module):
    """A decoder-only voice model.

    Args:
        config: kind and sizes.
        levels: L of the codec.
        codes: n of the codec.
        phones: size of the tokenizer.
        residual: whether the codec's levels have an order.
    """

    def __init__(self, config: ModelConfig, levels: int, codes: int, phones: int, *, residual: bool = True) -> None:
        super().__init__()
        self.config = config
        self.layout = Layout.of(config, levels, codes, phones, residual=residual)
        self.embeddings = Embeddings(config, self.layout)
        self.backbone = build_backbone(config)
        self.heads = self._code_heads()
        written = {TASKS[task].output for task in config.all_tasks}
        self.symbol_heads = nn.ModuleDict(
            {v: nn.Linear(config.dim, self.layout.size(v), bias=False) for v in SYMBOLS if v in written}
        )
        for head in self.symbol_heads.values():
            nn.init.normal_(head.weight, std=config.dim**-0.5)
        self.alignment = AlignmentHead(config.dim, phones) if config.alignment else None
        self.duration = DurationHead(config.dim) if config.kind == "v2-nar" else None

        self.adapters: Rows | None = None
        if config.lora is not None:
            self.adapt(config.lora)

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
        """Let the token tables start from the codec's own vectors, L tables float [n, d] or none."""
        generator = torch.Generator().manual_seed(seed)
        n = self.layout.codes
        for level, book in enumerate(codebooks):
            state = generator.get_state()
            for first in (1, n + 1):
                generator.set_state(state)  # prompt and response start alike
                codebook_init(self.embeddings.code[level].weight[first : first + n], book, EMBEDDING_STD, generator)
            if isinstance(self.heads, DepthHead) and level < self.layout.levels - 1:
                codebook_init(self.heads.tables[level].weight, book, EMBEDDING_STD, generator)

    def adapt(self, lora: LoraConfig) -> None:
        """Freeze the model and give it adapters, which change nothing as long as they are not trained."""
        self.config = ModelConfig.model_validate(self.config.model_dump() | {"lora": lora})
        self.adapters = add_lora(self.backbone.blocks, lora, self.layout.levels)
        freeze_base(self)

    def merge_adapters(self) -> None:
        """Fold the adapters into the weights: a model without adapters, all of it trainable."""
        merge_lora(self.backbone.blocks)
        self.config = self.config.model_copy(update={"lora": None})
        self.adapters = None
        self.requires_grad_(True)

    def _adapted(self, level: Tensor) -> AbstractContextManager:
        """Inside, rows take the adapters of their levels int64 [B]."""
        return nullcontext() if self.adapters is None else self.adapters.at(level)

    def hidden(self, packed: Packed, past: Past | None = None) -> Tensor:
        """Hidden states [B, T, D]; a ``past``, empty before, then holds what is before the outputs of parallel rows."""
        *_, last = self.states(packed, past)
        return self.backbone.norm(last)

    def states(self, packed: Packed, past: Past | None = None) -> Iterator[Tensor]:
        """What the backbone has after each layer, [B, T, D], not yet normalised; ``past`` as of ``hidden``."""
        if past is not None:
            past.begin(packed.symbol.shape[1], packed.lengths)
            past.origin = packed.response if self.layout.restart else past.origin
        with self._adapted(packed.level):
            yield from self.backbone.states(self.embeddings(packed), packed.position, packed.mask(), past)
        if past is not None:
            past.end()

    def prefill(self, packed: Packed, cache: Cache, last: int = 1) -> Tensor:
        """Hidden states [B, last, D] of each row's last positions; ``cache``, empty before, then holds the rows."""
        x = self.embeddings(packed)
        cache.begin(x.shape[1], packed.lengths)
        with self._adapted(packed.level):
            out = self.backbone.prefill(x, packed.position, packed.mask(), cache, last)
        cache.end()
        if self.layout.restart:
            cache.origin = packed.response
        return out

    def output(
        self, segment: Tensor, code: Tensor, masked: Tensor, level: Tensor, frames: Tensor, past: Past
    ) -> Tensor:
        """A parallel pass over outputs alone, behind a ``past`` that ``hidden`` has filled → hidden states [B, T, D].

        Args:
            segment, code: ids int64 [B, T] and [B, L, T] of the outputs' positions.
            masked: float [B], as of ``Packed``.
            level, frames: int64 [B], the level whose adapters serve, and T of each row.
        """
        x, positions = self.embeddings.output(segment, code, masked), past.positions(segment.shape[1])
        past.begin(segment.shape[1], frames)
        with self._adapted(level):
            out = self.backbone(x, positions, None, past)
        past.end()
        return out

    def step(self, codes: Tensor, cache: Cache, layers: int | None = None) -> Tensor:
        """T more response frames int64 [B, l, T] (l levels shown to a causal row) → hidden states [B, T, D].

        Args:
            layers: leave behind so many layers (an early exit); the cache of the later ones is then not written.
        """
        x = self.embeddings.frames(self.layout.response_ids(codes), Place.RESPONSE)
        return self._append(x, cache, layers)

    def step_symbol(self, symbols: Tensor, vocabulary: Vocabulary, cache: Cache) -> Tensor:
        """One more written symbol of each row, int64 [B] in the vocabulary's ids → hidden states [B, 1, D]."""
        ids = symbols[:, None] + self.layout.first_symbol(vocabulary)
        x = self.embeddings.symbol(ids) + self.embeddings.segment.weight[Place.SYMBOL]
        return self._append(x, cache)

    def first(self, hidden: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
        """What is to be drawn first at hidden states [M, D]: the states as the heads of later levels want them, and
        logits float32 [M, V] of level 0, or of a written symbol."""
        if vocabulary != "codes":
            return hidden, self.symbol_heads[vocabulary](hidden).float()
        states = self.heads.prepare(hidden)
        return states, self.heads(states, 0, []).float()

    def _append(self, x: Tensor, cache: Cache, layers: int | None = None) -> Tensor:
        positions = cache.positions(x.shape[1])
        cache.begin(x.shape[1])
        with self._adapted(cache.lengths.new_zeros(len(x))):
            if layers is None:
                out = self.backbone(x, positions, None, cache)
            else:
                states = self.backbone.states(x, positions, None, cache)
                out = self.backbone.norm(next(islice(states, layers - 1, None)))
        cache.end()
        return out

    def align(self, packed: Packed) -> Tensor:
        """Log p [B, T, S] in nats of the text slot that is spoken in the frame after each position."""
        middle = next(islice(self.states(packed), self._middle, None))
        return self.alignment(middle, text_slots(packed))

    @property
    def _middle(self) -> int:
        """Index of the layer whose states the alignment head reads places off; phones one layer behind it."""
        return max(1, self.config.layers // 2) - 1

    def loss(
        self,
        packed: Packed,
        label_smoothing: float = 0.0,
        alignment_weight: float = 0.0,
        factors: Mapping[str, float] = MappingProxyType({}),
        exit_weights: Sequence[float] | None = None,
        guide: losses.Guide | None = None,
        shares: Mapping[str, float] | None = None,
        every_weight: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of the cross entropies of each level and of what is written, in nats, plus alignment's and duration's.

        Args:
            factors: weights of the losses by name (``level0``, ..., ``digits``), relative to one another; 1 where it
                names none.
            exit_weights: of the predictions behind each layer (see ``vall_e.nn.layerskip``); None: the last only.
            guide: what a teacher's ``logits`` say of this batch; exits before the last layer learn without it.
            shares: of a piece of a batch, by kind of ``losses.targets``: its targets over those of the whole batch,
                times the number of pieces, so that the mean over pieces is the whole batch's loss. None: a whole batch.
            every_weight: whether a weight that had no part in the loss gets a gradient of 0 and not None, so that
                processes whose batches have other tasks agree on the gradients that there are.

        Returns:
            the loss (scalar); of the last layer ``loss.X`` and ``accuracy.X`` per level (X is level0, ...), per written
            vocabulary and per task; ``distill``, ``alignment`` (places in the text), ``phone`` and ``duration`` where
            there are any, and in training what the backbone adds (``Backbone.auxiliary``; scalars, without gradient).
        """
        states, shares = list(self.states(packed)), shares or {}
        *early, last = exit_weights or [1.0]
        hidden = self.backbone.norm(states[-1])
        found = self._predictions(hidden, packed, label_smoothing, factors, shares, guide)
        loss = last * found.mean(hidden)
        found.summarise()
        for state, weight in zip(states, early, strict=False):
            if weight > 0:
                exit_hidden = self.backbone.norm(state)
                there = losses.Found(shares=shares)
                self._predict(there, exit_hidden, packed, label_smoothing, factors)
                loss = loss + weight * there.mean(exit_hidden)
        if self.alignment is not None and bool((packed.spoken >= 0).any()):
            text = text_slots(packed)
            place = self.alignment.place_loss(states[self._middle], text, packed.spoken)
            behind = states[min(self._middle + 1, len(states) - 1)]
            phone = self.alignment.phone_loss(behind, packed.symbol[:, : text.shape[1]], packed.spoken)
            value = found.note("alignment", place) + found.note("phone", phone)
            loss = loss + alignment_weight * shares.get("alignment", 1.0) * value
        if self.duration is not None:
            value = losses.of_duration(self.duration, hidden, packed)
            loss = loss + shares.get("duration", 1.0) * found.note("duration", value)
        if self.training:
            real = torch.arange(states[-1].shape[1], device=self.device) < packed.lengths[:, None]
            for name, (weight, extra) in self.backbone.auxiliary(real).items():
                loss = loss + weight * found.note(name, extra)
        if every_weight:
            loss = loss + self._nothing()
        return loss, found.figures

    def _nothing(self) -> Tensor:
        """0, of all weights that are trained; but for those of the blocks, which every batch goes through."""
        inside = set(self.backbone.blocks.parameters())
        return 0 * sum(p.flatten()[0].float() for p in self.parameters() if p.requires_grad and p not in inside)

    def _predictions(
        self,
        hidden: Tensor,
        packed: Packed,
        smoothing: float = 0.0,
        factors: Mapping[str, float] = MappingProxyType({}),
        shares: Mapping[str, float] = MappingProxyType({}),
        guide: losses.Guide | None = None,
    ) -> losses.Shown:
        """The cross entropies of the heads on normalised states of some layer, [B, T, D]."""
        found = losses.Shown(tasks=packed.header[:, 0], guide=guide, shares=shares)
        self._predict(found, hidden, packed, smoothing, factors)
        return found

    def _predict(
        self,
        found: losses.Found | losses.Kept,
        hidden: Tensor,
        packed: Packed,
        smoothing: float = 0.0,
        factors: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        losses.of_codes(found, self.heads, hidden, packed.target, smoothing, factors)
        for vocabulary, head in self.symbol_heads.items():
            rows = packed.vocabulary == VOCABULARIES.index(vocabulary)
            factor = factors.get(vocabulary, 1.0)
            losses.of_symbols(found, vocabulary, head, hidden, packed.written, rows, smoothing, factor)

    def logits(self, packed: Packed) -> dict[str, Tensor]:
        """Logits [M, V] where ``loss`` predicts, by level (``level0``, ...) and written vocabulary."""
        kept = losses.Kept()
        self._predict(kept, self.hidden(packed), packed)
        return kept


def text_slots(packed: Packed) -> Tensor:
    """Bool [B, S], true where a slot holds text; S is a multiple of 16 that holds the last of it."""
    text = packed.segment == Place.TEXT
    last = int((text * torch.arange(1, text.shape[1] + 1, device=text.device)).max())
    return text[:, : -(-last // 16) * 16]
