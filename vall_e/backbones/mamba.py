"""Mamba (2312.00752): ``transformers``' mixers, with a cache that is right for rows of different lengths.

A forward without a cache is theirs, with their CUDA kernels where ``mamba-ssm`` and ``causal-conv1d`` are installed.
Theirs knows no padding on the right, so a forward with a cache is written here around the same weights: at padding the
step is 0, which leaves a state as it was. Dimensions: B rows, T positions, D width, I inner width, N state, K
convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MambaConfig, MambaModel

from vall_e.backbones.base import Backbone
from vall_e.family import ModelConfig
from vall_e.nn.cache import Cache
from vall_e.nn.masks import Mask
from vall_e.nn.norm import RMSNorm
from vall_e.nn.ssm import StateCache, convolve, recur


class Block(nn.Module):
    """``x + mixer(norm(x))``, with dropout on the branch."""

    def __init__(self, config: ModelConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = RMSNorm(config.dim, eps=1e-6)
        self.mixer = mixer
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mix: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """[B, T, D] → [B, T, D]; ``mix`` does what ``mixer`` does, going on from a past."""
        return x + self.dropout((mix or self.mixer)(self.norm(x)))


class Mamba(Backbone):
    """See ``vall_e.backbones.base.Backbone``. Subclasses say what the ``mixers`` are, how they ``advance`` and what
    they keep (``shapes``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config, mixer) for mixer in self.mixers())
        self.norm = RMSNorm(config.dim, eps=1e-6)
        for block in self.blocks:
            for name in ("in_proj", "x_proj", "out_proj"):
                if hasattr(block.mixer, name):
                    weight = getattr(block.mixer, name).weight
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            block.mixer.out_proj.weight.data.mul_(config.layers**-0.5)

    def mixers(self) -> list[nn.Module]:
        """One mixer a layer, whose steps and rates start as in the paper (section 3.6)."""
        return [layer.mixer for layer in MambaModel(MambaConfig(**self.hf_sizes())).layers]

    def hf_sizes(self) -> dict[str, int]:
        """What both of ``transformers``' configurations call our sizes; there is no text, so one word does."""
        config, sizes = self.config, self.config.mamba
        return {
            "vocab_size": 1, "hidden_size": config.dim, "num_hidden_layers": config.layers,
            "state_size": sizes.state, "conv_kernel": sizes.conv, "expand": sizes.expand,
        }  # fmt: skip

    def states(
        self, x: Tensor, positions: Tensor, mask: Mask | None = None, cache: Cache | None = None
    ) -> Iterator[Tensor]:
        self.past_only(mask)
        for layer, block in enumerate(self.blocks):
            mix = None if cache is None else partial(self.advance, block.mixer, cache=cache, layer=layer)
            x = block(x, mix)
            yield x

    def advance(self, mixer: nn.Module, x: Tensor, cache: StateCache, layer: int) -> Tensor:
        """``mixer`` over ``x`` [B, T, D] → [B, T, D], going on from the states of ``cache`` and leaving new ones
        (2312.00752, algorithm 2 and section 3.4)."""
        inner, gate = mixer.in_proj(x).chunk(2, dim=-1)
        inner = self._convolve(mixer, inner, cache, layer)
        sizes = (mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size)
        step, write, read = mixer.x_proj(inner).split(sizes, dim=-1)
        step = F.softplus(mixer.dt_proj(step).float()) * cache.real(x.shape[1])[..., None]
        decay = (step[..., None] * -mixer.A_log.float().exp()).exp()
        drive = (step * inner)[..., None] * write[:, :, None]
        out = self._recur(decay, drive, read[:, :, None], cache, layer) + inner * mixer.D
        return mixer.out_proj((out * F.silu(gate)).to(x.dtype))

    def shapes(self, mixer: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What one row keeps in one layer: inputs of the convolution [C, K - 1], and the state."""
        inner = mixer.intermediate_size
        return (inner, mixer.conv_kernel_size - 1), (inner, mixer.ssm_state_size)

    def new_cache(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> StateCache:
        conv, state = self.shapes(self.blocks[0].mixer)
        shapes = {"conv": (conv, dtype), "state": (state, torch.float32)}
        return StateCache(self.config.layers, rows, shapes, device)

    def _convolve(self, mixer: nn.Module, x: Tensor, cache: StateCache, layer: int) -> Tensor:
        past = cache.tensors["conv"]
        out, past[layer] = convolve(x, past[layer], cache.counts, mixer.conv1d)
        return F.silu(out)

    def _recur(self, decay: Tensor, drive: Tensor, read: Tensor, cache: StateCache, layer: int) -> Tensor:
        states = cache.tensors["state"]
        out, states[layer] = recur(decay, drive.float(), read.float(), states[layer])
        return out
