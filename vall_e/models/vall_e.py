"""The model: embeddings, a backbone, heads.

Kinds: ``ar+nar`` (VALL-E, 2301.02111, section 4.2, both passes in one set of weights) and ``ar-depth`` (a frame a
step, its levels from a small head). Dimensions: B rows, T positions, D width, L levels, n codes per level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.backbones.base import build_backbone
from vall_e.family import ModelConfig
from vall_e.models.heads import AlignmentHead, DepthHead, SplitHeads, codebook_init
from vall_e.models.packing import IGNORE, RESPONSE, TEXT, Layout, Packed
from vall_e.nn.cache import Cache

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

    def embed(self, text: Tensor, segment: Tensor, code: Tensor) -> Tensor:
        """Ids int64 [B, T], [B, T], [B, L, T] → [B, T, D]."""
        x = self.text(text) + self.segment(segment)
        for level, table in enumerate(self.code):
            x = x + table(code[:, level])
        return x

    def hidden(self, packed: Packed) -> Tensor:
        """Hidden states [B, T, D]."""
        x = self.embed(packed.text, packed.segment, packed.code)
        return self.backbone(x, packed.position, packed.mask())

    def prefill(self, packed: Packed, cache: Cache) -> Tensor:
        """Hidden states [B, D] of each row's last position; ``cache``, empty before, then holds the rows."""
        x = self.embed(packed.text, packed.segment, packed.code)
        cache.begin(x.shape[1], packed.lengths)
        out = self.backbone.prefill(x, packed.position, packed.mask(), cache)
        cache.end()
        if self.layout.restart:
            cache.origin = packed.response
        return out

    def step(self, codes: Tensor, cache: Cache) -> Tensor:
        """One more response frame int64 [B, l, 1] (l levels shown to a causal row) → hidden states [B, D]."""
        shown = codes.shape[1]
        ids = codes.new_zeros(codes.shape[0], self.layout.levels, 1)
        ids[:, :shown] = codes + self.layout.codes + 1
        segment = torch.full_like(ids[:, 0], RESPONSE)
        x = self.embed(torch.zeros_like(segment), segment, ids)
        positions = cache.positions(1)
        cache.begin(1)
        out = self.backbone(x, positions, None, cache)
        cache.end()
        return out[:, 0]

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
        return self.backbone.states(x, packed.position, packed.mask())

    def loss(
        self, packed: Packed, label_smoothing: float = 0.0, alignment_weight: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over levels of the cross entropy in nats, and the alignment's.

        Returns:
            the loss (scalar), per level ``loss.l`` and ``accuracy.l``, and ``alignment`` (scalars, without gradient).
        """
        states = list(self._states(packed))
        hidden = self.backbone.norm(states[-1])
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
        loss = torch.stack(losses).mean()
        if self.alignment is not None and bool((packed.spoken != IGNORE).any()):
            figures["alignment"] = self.alignment.loss(states[self._middle], _text_slots(packed), packed.spoken)
            loss = loss + alignment_weight * figures["alignment"]
            figures["alignment"] = figures["alignment"].detach()
        return loss, figures


def _text_slots(packed: Packed) -> Tensor:
    """Bool [B, S], true where a slot holds text; S is a multiple of 16 that holds the longest text."""
    text = packed.segment == TEXT
    return text[:, : -(-int(text.sum(1).max()) // 16) * 16]


def _indices(at: Tensor) -> Tensor:
    """Flat indices int64 [M] of what is true in ``at``; to fill up, position 0, where nothing is predicted."""
    index = at.flatten().nonzero()[:, 0]
    return F.pad(index, (0, -len(index) % SHAPES))
