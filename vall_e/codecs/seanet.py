"""EnCodec's encoder and decoder (2210.13438, section 3.1) with fewer copies: the same numbers but for rounding.

The package copies a clip before every convolution to put its reflection in front of it, element by element, and before
those of kernel 1 for nothing. Here the ELU before a convolution writes where the convolution reads. In an encoder on a
CPU the channels of a step lie side by side, as the kernels of oneDNN want them: else each layer puts them there first.
(A decoder's transposed convolutions want it the other way.)

A few steps of an LSTM, as a stream takes them, are taken here without oneDNN, which packs all weights at every call.

Dimensions: B batch, C channels, T steps, S layers of an LSTM.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.codecs.rows import CACHED

_KEPT = threading.local()


def lean(network: nn.Module) -> nn.Module:
    """``network``, a causal SEANetEncoder or SEANetDecoder without normalisation over time, its convolutions and
    residual blocks exchanged; its weights keep their names. For inference only, and for clips whose number of steps is
    a multiple of every stride."""
    from encodec.modules import SConv1d, SEANetEncoder
    from encodec.modules.seanet import SEANetResnetBlock

    layers, beside = network.model, isinstance(network, SEANetEncoder)
    for index, layer in enumerate(layers):
        if isinstance(layer, SEANetResnetBlock):
            layers[index] = _Block(layer, beside)
        elif isinstance(layer, SConv1d):
            activated = index > 0 and isinstance(layers[index - 1], nn.ELU)
            layers[index] = _Convolution(layer, activated, beside)
            if activated:
                layers[index - 1] = nn.Identity()
    return network


def recur(lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What ``lstm`` itself, of one direction and without projections, makes of the next steps.

    Args:
        x: float [T, B, C], T at least 1.
        state: hidden and cell state float [S, B, C], as the steps before left them; None at the beginning.

    Returns:
        float [T, B, C] and the state behind it.
    """
    if not x.is_cpu:
        return lstm(x, state)
    hidden, cell = state or (x.new_zeros(lstm.num_layers, x.shape[1], lstm.hidden_size),) * 2
    ends = []
    for (inward, onward, bias, bias_onward), h, c in zip(lstm.all_weights, hidden, cell, strict=True):
        steps = []
        for driven in F.linear(x, inward, bias):
            into, keep, new, out = (driven + F.linear(h, onward, bias_onward)).chunk(4, -1)
            c = keep.sigmoid() * c + into.sigmoid() * new.tanh()
            h = out.sigmoid() * c.tanh()
            steps.append(h)
        x = torch.stack(steps)
        ends.append((h, c))
    last_hidden, last_cell = (torch.stack(part) for part in zip(*ends, strict=True))
    return x, (last_hidden, last_cell)


def _side_by_side(x: Tensor) -> Tensor:
    """``x`` [., C, T] itself, with the channels of a step side by side in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _room(x: Tensor, *shape: int) -> Tensor:
    """Uninitialised, like ``x``; on a CPU what this thread had before, where it is not large.

    Fresh memory comes page by page from the system, which in a virtual machine took longer than an ELU into it.
    """
    size = math.prod(shape)
    if not x.is_cpu or size > 2 * CACHED:
        return x.new_empty(shape)
    kept: Tensor | None = getattr(_KEPT, "room", None)
    if kept is None or kept.dtype != x.dtype or kept.numel() < size:
        with torch.inference_mode(False):  # it may be written to outside of that mode as well
            kept = _KEPT.room = x.new_empty(size)
    return kept[:size].view(shape)


class _Convolution(nn.Module):
    """A causal convolution over a clip that its own reflection precedes, with the ELU before it.

    Args:
        theirs: the package's ``SConv1d``.
        activated: an ELU comes before it.
        beside: on a CPU the channels of a step lie side by side.
    """

    def __init__(self, theirs: nn.Module, activated: bool, beside: bool) -> None:
        super().__init__()
        self.conv, self.activated, self.beside = theirs.conv, activated, beside
        conv = theirs.conv.conv
        if beside:
            conv.weight.data = _side_by_side(conv.weight.data)
        self.left = (conv.kernel_size[0] - 1) * conv.dilation[0] - (conv.stride[0] - 1)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` float [B, C, T] → float [B, C', T / stride]. With an activation and kernel 1, ``x`` is used up."""
        left, steps = self.left, x.shape[-1]
        if left == 0:
            return self._convolve(F.elu_(x) if self.activated else x)
        rows, channels, length = *x.shape[:2], left + max(steps, left + 1)
        if self.beside and x.is_cpu:
            padded = _room(x, rows, length, channels).transpose(1, 2)
        else:
            padded = _room(x, rows, channels, length)
        inside = padded[..., left : left + steps]
        if self.activated:
            torch.ops.aten.elu.out(x, out=inside)
        else:
            inside.copy_(x)
        padded[..., left + steps :] = 0  # what is too short to be reflected is followed by silence
        padded[..., :left] = padded[..., left + 1 : 2 * left + 1].flip(-1)
        return self._convolve(padded[..., : left + steps])

    def _convolve(self, x: Tensor) -> Tensor:
        conv = self.conv.conv
        if not (self.beside and x.is_cpu):
            return conv(x)
        flat = x.unsqueeze(2), conv.weight.unsqueeze(2), conv.bias, (1, *conv.stride), 0, (1, *conv.dilation)
        return F.conv2d(*flat).squeeze(2)


class _Block(nn.Module):
    """A convolution of kernel 3 and one of kernel 1 with ELUs before them, and one of kernel 1 beside.

    Args:
        theirs: the package's ``SEANetResnetBlock`` with a shortcut.
        beside: as of ``_Convolution``.
    """

    def __init__(self, theirs: nn.Module, beside: bool) -> None:
        super().__init__()
        _, wide, _, narrow = theirs.block
        first, second = _Convolution(wide, True, beside), _Convolution(narrow, True, beside)
        self.block = nn.Sequential(nn.Identity(), first, nn.Identity(), second)
        self.shortcut = _Convolution(theirs.shortcut, False, beside)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` float [B, C, T] → float [B, C, T]."""
        return self.shortcut(x).add_(self.block(x))
