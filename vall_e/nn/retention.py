"""Retention: attention whose scores fade with distance instead of passing a softmax, and so have a state.

Three forms of the same sum over the past, all in float32 and with decays kept as logarithms:

    parallel    o_n = sum over m <= n of exp(c_n - c_m) (q_n . k_m) v_m,  c the running sum of the log decays
    recurrent   S_n = exp(a_n) S_{n-1} + k_n v_n^T,  o_n = q_n S_n
    chunked     parallel inside a chunk, recurrent from one chunk to the next

Dimensions: B rows, T new positions, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.nn.cache import Cache
from vall_e.nn.masks import causal
from vall_e.nn.rope import rotate

CHUNK = 64
TEMPERATURE = 16.0  # of gated decays: sigmoid(0) ** (1 / 16) = 0.96


def parallel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """All positions at once: quadratic in T (2307.08621, section 2.1, equation 5).

    Args:
        q, k, v: float32 [B, H, T, d].
        log_decay: float32 [B, H, T], log of what each position leaves of the state before it, at most 0.

    Returns:
        float32 [B, H, T, d].
    """
    reach = log_decay.cumsum(-1)
    fading = reach[..., :, None] - reach[..., None, :]
    fading = fading.masked_fill(~causal(q.shape[2], q.shape[2], device=q.device), -torch.inf).exp()
    return ((q @ k.transpose(-1, -2)) * fading) @ v


def recurrent(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position, T = 1, behind ``state`` float32 [B, H, d, d] (2307.08621, section 2.1, equation 6).

    Returns:
        its output float32 [B, H, 1, d] and the state after it.
    """
    state = state * log_decay.exp()[..., None] + k.transpose(-1, -2) @ v
    return q @ state, state


def chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Any T, behind ``state`` or nothing; linear in T (2307.08621, section 2.1, equation 7).

    Returns:
        outputs float32 [B, H, T, d] and the state float32 [B, H, d, d] after the last position.
    """
    outputs = []
    for qs, ks, vs, decays in zip(*(x.split(chunk, dim=2) for x in (q, k, v, log_decay)), strict=True):
        reach = decays.cumsum(-1)[..., None]
        out, added = parallel(qs, ks, vs, decays), (ks * (reach[:, :, -1:] - reach).exp()).transpose(-1, -2) @ vs
        if state is not None:
            out = out + (qs * reach.exp()) @ state
            added = added + state * reach[:, :, -1:].exp()
        outputs.append(out)
        state = added
    return torch.cat(outputs, dim=2), state


class Retention(nn.Module):
    """Multi-scale retention (2307.08621, section 2.2): a norm per head, a swish gate, rotary positions.

    The paper's rotation and its decay together are xPos; here the rotation is that of ``vall_e.nn.rope``, so its
    positions may count anew in each segment, while the decay counts every position. A head's decay is
    1 - 2 ** (-5 - h), or, gated (2405.05254, section 3.1), drawn from the data: sigmoid(x W) ** (1 / 16).

    Args:
        dim: D; keys and values are D wide.
        heads: H, divides D.
        gated: decays come from the data.
    """

    def __init__(self, dim: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.gate, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(5))
        self.decay = nn.Linear(dim, heads, bias=False) if gated else None
        self.norm = nn.GroupNorm(heads, dim, eps=1e-6)

    def log_decay(self, x: Tensor) -> Tensor:
        """``x`` [B, T, D] → float32 [B, H, T], below 0."""
        if self.decay is not None:
            return F.logsigmoid(self.decay(x).float()).transpose(1, 2) / TEMPERATURE
        head = torch.arange(self.heads, dtype=torch.float32, device=x.device)
        return torch.log1p(-torch.exp2(-5.0 - head))[None, :, None].expand(x.shape[0], -1, x.shape[1])

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        real: Tensor | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """``x`` [B, T, D] → [B, T, D].

        Args:
            angles: ``rotary`` of the T positions.
            real: bool [B, T], false where a position is padding, which neither adds to a state nor fades it.
            cache: its ``tensors["state"]`` holds a state per layer, which is read and replaced.
            layer: this layer's place in it.
        """
        batch, length, width = x.shape
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = rotate(q, *angles), rotate(k, *angles)
        decays = self.log_decay(x)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = q.float(), k.float() * k.shape[-1] ** -0.5, v.float()
            if real is not None:
                k, decays = k * real[:, None, :, None], decays * real[:, None]
            if cache is None:
                out, _ = chunked(q, k, v, decays)
            else:
                states = cache.tensors["state"]
                form = recurrent if length == 1 else chunked
                out, states[layer] = form(q, k, v, decays, states[layer])
        out = self.norm(out.transpose(1, 2).reshape(batch * length, width).to(x.dtype)).view_as(x)
        return self.o(F.silu(self.gate(x)) * out)

    @staticmethod
    def new_cache(layers: int, rows: int, heads: int, dim: int, device: torch.device) -> Cache:
        """An empty cache of ``layers`` states float32 [B, H, d, d], d being ``dim``."""
        cache = Cache(rows, device)
        cache.tensors["state"] = [torch.zeros(rows, heads, dim, dim, device=device) for _ in range(layers)]
        return cache
