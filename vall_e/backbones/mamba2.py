"""Mamba-2 (2405.21060): as ``vall_e.backbones.mamba``, with heads that share a rate and with larger states.

Dimensions: B rows, T positions, D width, I inner width = H heads of P channels, N state, K convolution.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mamba2Config, Mamba2Model

from vall_e.backbones.mamba import Mamba
from vall_e.nn.ssm import StateCache

CHUNK = 32  # positions: without CUDA kernels the products inside a chunk are held in memory, [B, T, CHUNK, H, N]


class Mamba2(Mamba):
    """See ``vall_e.backbones.base.Backbone``."""

    def mixers(self) -> list[nn.Module]:
        sizes = self.config.mamba
        config = Mamba2Config(
            **self.hf_sizes(),
            head_dim=sizes.head_dim,
            num_heads=self.config.dim * sizes.expand // sizes.head_dim,
            n_groups=1,
            chunk_size=CHUNK,
            layer_norm_epsilon=1e-6,
        )
        return [layer.mixer for layer in Mamba2Model(config).layers]

    def advance(self, mixer: nn.Module, x: Tensor, cache: StateCache, layer: int) -> Tensor:
        """As ``Mamba.advance`` (2405.21060, section 7): a rate per head."""
        width, state = mixer.intermediate_size, mixer.ssm_state_size
        gate, mixed, step = mixer.in_proj(x).split((width, width + 2 * state, mixer.num_heads), dim=-1)
        mixed = self._convolve(mixer, mixed, cache, layer)
        inner, write, read = mixed.split((width, state, state), dim=-1)
        inner = inner.unflatten(-1, (mixer.num_heads, mixer.head_dim))
        step = F.softplus(step.float() + mixer.dt_bias) * cache.real(x.shape[1])[..., None]
        decay = (step * -mixer.A_log.float().exp()).exp()[..., None, None]
        drive = (step[..., None] * inner)[..., None] * write[:, :, None, None]
        out = self._recur(decay, drive, read[:, :, None, None], cache, layer) + inner * mixer.D[:, None]
        return mixer.out_proj(mixer.norm(out.flatten(-2), gate).to(x.dtype))

    def shapes(self, mixer: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
        width, state = mixer.intermediate_size, mixer.ssm_state_size
        return (width + 2 * state, mixer.conv_kernel_size - 1), (mixer.num_heads, mixer.head_dim, state)
