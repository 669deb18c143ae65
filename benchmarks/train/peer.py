"""The loop that one would write over ``transformers``' ``LlamaModel``: random order, batches padded to the longest row.

Its embeddings, heads and losses are ours, so that the two loops minimise the same function; layers, norms, rotary
positions and attention with its mask are theirs. Dimensions: B rows, T positions, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from vall_e.backbones.base import Backbone
from vall_e.backbones.huggingface import tensor_names, their_config
from vall_e.config import TrainConfig
from vall_e.models.packing import Layout, Packed, Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.nn.cache import Cache
from vall_e.nn.masks import Mask
from vall_e.training.module import VallEModule

DEFAULT = "sdpa"  # what transformers takes where nobody asks for another
ATTENTION = (DEFAULT, "eager")
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


class TheirLlama(Backbone):
    """``LlamaModel`` between our embeddings and our heads, with the weights of one of our own.

    Args:
        own: a backbone ``llama`` without anything put on its blocks.
        attention: of ``transformers``.
    """

    def __init__(self, own: Backbone, attention: str) -> None:
        super().__init__(own.config)
        config = LlamaConfig(**their_config(own.config, vocab_size=1, pad_token_id=None), attn_implementation=attention)
        model = LlamaModel(config)
        tensors = dict(own.named_parameters())
        tensors = {theirs: tensors[ours] for ours, theirs in tensor_names(own.config).items()}
        model.load_state_dict({name: t.detach().clone() for name, t in tensors.items()}, strict=False)
        del model.embed_tokens
        self.blocks, self.norm, self.model = model.layers, nn.Identity(), model  # they normalise the last states
        self.lengths: Tensor | None = None

    def states(
        self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: Cache | None = None
    ) -> Iterator[Tensor]:
        self.past_only(mask)
        real = torch.arange(x.shape[1], device=x.device) < self.lengths[:, None]
        out = self.model(
            inputs_embeds=x,
            attention_mask=real.long(),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        )
        yield from out.hidden_states[1:]

    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> Cache:
        raise NotImplementedError("it is trained here, and decodes nothing")


class Loop:
    """Steps of an optimiser over a model with ``TheirLlama``, by hand.

    Args:
        ours: weights are copied.
        train: its optimiser, rates, clipping, precision and losses are used.
    """

    def __init__(self, ours: VallE, train: TrainConfig, attention: str) -> None:
        model = copy.deepcopy(ours)
        model.backbone = TheirLlama(ours.backbone, attention)
        self.module, self.train = VallEModule(model, train).train(), train
        found = self.module.configure_optimizers()
        self.optimizer, self.schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]

    def loss(self, batch: Packed) -> Tensor:
        """Of a batch, scalar."""
        module, train = self.module, self.train
        module.model.backbone.lengths = batch.lengths
        dtype = PRECISIONS[train.precision]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss, _ = module.model.loss(batch, train.label_smoothing, train.alignment_weight, module.factors)
        return loss

    def steps(self, batches: Sequence[Packed]) -> None:
        """A step of the optimiser on each batch."""
        for batch in batches:
            self.optimizer.zero_grad()
            self.loss(batch).backward()
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.train.grad_clip)
            self.optimizer.step()
            self.schedule.step()


def padded(samples: Sequence[Sample], layout: Layout, positions: int, seed: int) -> list[Packed]:
    """Batches of ``samples`` in random order, each padded to its longest row and as large as ``positions`` allows."""
    order = np.random.default_rng(seed).permutation(len(samples))
    batches: list[list[Sample]] = [[]]
    longest = 0
    for sample in (samples[i] for i in order):
        length = layout.length(sample)
        longest = max(longest, length)
        if batches[-1] and (len(batches[-1]) + 1) * longest > positions:
            batches.append([])
            longest = length
        batches[-1].append(sample)
    return [pack(batch, layout) for batch in batches]


def tokens(batches: Sequence[Packed]) -> int:
    """Positions that are no padding."""
    return sum(int(batch.lengths.sum()) for batch in batches)
