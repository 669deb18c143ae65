"""The model: embeddings, a backbone, heads.

Kinds: ``ar+nar`` (VALL-E, 2301.02111, section 4.2, both passes in one set of weights) and ``ar-depth`` (a frame a
step, its levels from a small head). Dimensions: B rows, T positions, D width, L levels, n codes per level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.backbones.base import build_backbone
from vall_e.family import LoraConfig, ModelConfig
from vall_e.models.heads import AlignmentHead, DepthHead, SplitHeads, codebook_init
from vall_e.models.packing import IGNORE, RESPONSE, TEXT, Layout, Packed
from vall_e.nn.cache import Cache
from vall_e.nn.lora import Rows, add_lora, freeze_base, merge_lora

EMBEDDING_STD = 0.5
SHAPES = 128  # what a head is given is rounded up to a multiple of this: few shapes, see vall_e.data.batches


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
        self.layout = Layout.of(config, levels, codes)
        self.text = nn.Embedding(phones, config.dim, padding_idx=0)
        self.segment = nn.Embedding(self.layout.segments, config.dim, padding_idx=0)
        self.code = nn.ModuleList(nn.Embedding(self.layout.code_ids, config.dim, padding_idx=0) for _ in range(levels))
        for table in (self.text, self.segment, *self.code):
            nn.init.normal_(table.weight, std=EMBEDDING_STD)
            table.weight.data[0].zero_()
        self.backbone = build_backbone(config)
        self.heads: DepthHead | SplitHeads
        if self.layout.depth:
            self.heads = DepthHead(config.dim, config.depth_dim, config.depth_layers, levels, codes)
        else:
            self.heads = SplitHeads(config.dim, levels, codes)
        self.alignment = AlignmentHead(config.dim) if config.alignment else None
        self.adapters: Rows | None = None
        if config.lora is not None:
            self.adapt(config.lora)

    @property
    def device(self) -> torch.device:
        return self.text.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.text.weight.dtype

    def start_from_codebooks(self, codebooks: Sequence[Tensor], seed: int = 0) -> None:
        """Let the token tables start from the codec's own vectors, L tables float [n, d]."""
        generator = torch.Generator().manual_seed(seed)
        n = self.layout.codes
        for level, book in enumerate(codebooks):
            state = generator.get_state()
            for first in (1, n + 1):
                generator.set_state(state)  # prompt and response start alike
                codebook_init(self.code[level].weight[first : first + n], book, EMBEDDING_STD, generator)
            if self.layout.depth and level < self.layout.levels - 1:
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

    def embed(self, text: Tensor, segment: Tensor, code: Tensor) -> Tensor:
        """Ids int64 [B, T], [B, T], [B, L, T] → [B, T, D]."""
        x = self.text(text) + self.segment(segment)
        for level, table in enumerate(self.code):
            x = x + table(code[:, level])
        return x

    def hidden(self, packed: Packed, cache: Cache | None = None) -> Tensor:
        """Hidden states [B, T, D]. With an empty cache this is the prefill; the cache then knows each row's length."""
        x = self.embed(packed.text, packed.segment, packed.code)
        if cache is not None:
            cache.begin(x.shape[1], packed.lengths)
        with self._adapted(packed.level):
            out = self.backbone(x, packed.position, packed.mask(), cache)
        if cache is not None:
            cache.end()
            if self.layout.restart:
                cache.origin = packed.response
        return out

    def step(self, codes: Tensor, cache: Cache) -> Tensor:
        """One more response frame int64 [B, l, 1] (l levels shown to a causal row) → hidden states [B, D]."""
        return self.extend(codes, cache)[:, 0]

    def extend(self, codes: Tensor, cache: Cache, layers: int | None = None) -> Tensor:
        """T more response frames int64 [B, l, T] → hidden states [B, T, D].

        Args:
            layers: leave behind so many layers (an early exit); the cache of the later ones is then not written.
        """
        rows, shown, count = codes.shape
        ids = codes.new_zeros(rows, self.layout.levels, count)
        ids[:, :shown] = codes + self.layout.codes + 1
        segment = torch.full_like(ids[:, 0], RESPONSE)
        x = self.embed(torch.zeros_like(segment), segment, ids)
        positions = cache.positions(count)
        cache.begin(count)
        with self._adapted(torch.zeros_like(cache.lengths)):
            if layers is None:
                out = self.backbone(x, positions, None, cache)
            else:
                states = self.backbone.states(x, positions, None, cache)
                out = self.backbone.norm(next(islice(states, layers - 1, None)))
        cache.end()
        return out

    def align(self, packed: Packed) -> Tensor:
        """Log p [B, T, S] in nats of the text slot that is spoken in the frame after each position."""
        middle = next(islice(self._states(packed), self._middle, None))
        return self.alignment(middle, _text_slots(packed))

    @property
    def _middle(self) -> int:
        """Index of the layer whose states the alignment head reads."""
        return max(1, self.config.layers // 2) - 1

    def _states(self, packed: Packed) -> Iterator[Tensor]:
        x = self.embed(packed.text, packed.segment, packed.code)
        with self._adapted(packed.level):
            yield from self.backbone.states(x, packed.position, packed.mask())

    def _adapted(self, level: Tensor) -> AbstractContextManager:
        """Inside, rows take the adapters of their levels int64 [B]."""
        return nullcontext() if self.adapters is None else self.adapters.at(level)

    def loss(
        self,
        packed: Packed,
        label_smoothing: float = 0.0,
        alignment_weight: float = 0.0,
        exit_weights: Sequence[float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over levels of the cross entropy in nats, and the alignment's.

        Args:
            exit_weights: of the cross entropy behind each layer (see ``vall_e.nn.layerskip``); None: the last only.

        Returns:
            the loss (scalar), and without gradient, of the last layer, ``loss.l`` and ``accuracy.l`` per level, and
            ``alignment`` (scalars).
        """
        states = list(self._states(packed))
        *early, last = exit_weights or [1.0]
        loss, figures = self._prediction_loss(states[-1], packed, label_smoothing)
        loss = last * loss
        for state, weight in zip(states, early, strict=False):
            if weight > 0:
                loss = loss + weight * self._prediction_loss(state, packed, label_smoothing)[0]
        if self.alignment is not None and bool((packed.spoken != IGNORE).any()):
            figures["alignment"] = self.alignment.loss(states[self._middle], _text_slots(packed), packed.spoken)
            loss = loss + alignment_weight * figures["alignment"]
            figures["alignment"] = figures["alignment"].detach()
        return loss, figures

    def _prediction_loss(
        self, state: Tensor, packed: Packed, label_smoothing: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross entropy of what a layer left, [B, T, D], and figures; see ``loss``."""
        hidden = self.backbone.norm(state)
        losses, figures = [], {}
        for level in range(self.layout.levels):
            target = packed.target[:, level]
            at = target != IGNORE
            if not bool(at.any()):
                continue
            index = _indices(at)
            wanted = target.flatten()[index]
            if self.layout.depth:
                drawn = [packed.target[:, k].flatten()[index].clamp(min=0) for k in range(level)]
                logits = self.heads(hidden.flatten(0, 1)[index], level, drawn)
            else:
                logits = self.heads(hidden.flatten(0, 1)[index], level)
            losses.append(F.cross_entropy(logits.float(), wanted, ignore_index=IGNORE, label_smoothing=label_smoothing))
            figures[f"loss.{level}"] = losses[-1].detach()
            figures[f"accuracy.{level}"] = (logits.argmax(-1) == wanted).sum() / at.sum()
        return torch.stack(losses).mean(), figures


def _text_slots(packed: Packed) -> Tensor:
    """Bool [B, S], true where a slot holds text; S is a multiple of 16 that holds the longest text."""
    text = packed.segment == TEXT
    return text[:, : -(-int(text.sum(1).max()) // 16) * 16]


def _indices(at: Tensor) -> Tensor:
    """Flat indices int64 [M] of what is true in ``at``; to fill up, position 0, where nothing is predicted."""
    index = at.flatten().nonzero()[:, 0]
    return F.pad(index, (0, -len(index) % SHAPES))
