"""EnCodec's encoder and decoder (2210.13438, section 3.1) with fewer copies: the same numbers but for rounding.

The package copies a clip before every convolution to put its reflection in front of it, element by element, and before
those of kernel 1 for nothing. Here the ELU before a convolution writes where the convolution reads.

A few steps of an LSTM, as a stream takes them, are taken here without oneDNN, which packs all weights at every call.

Dimensions: B batch, C channels, T steps, S layers of an LSTM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def lean(network: nn.Module) -> nn.Module:
    """``network``, a causal SEANetEncoder or SEANetDecoder without normalisation over time, its convolutions and
    residual blocks exchanged; its weights keep their names. For inference only, and for clips whose number of steps is
    a multiple of every stride."""
    from encodec.modules import SConv1d
    from encodec.modules.seanet import SEANetResnetBlock

    layers = network.model
    for index, layer in enumerate(layers):
        if isinstance(layer, SEANetResnetBlock):
            layers[index] = _Block(layer)
        elif isinstance(layer, SConv1d):
            activated = index > 0 and isinstance(layers[index - 1], nn.ELU)
            layers[index] = _Convolution(layer, activated)
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


class _Convolution(nn.Module):
    """A causal convolution over a clip that its own reflection precedes, with the ELU before it.

    Args:
        theirs: the package's ``SConv1d``.
        activated: an ELU comes before it.
    """

    def __init__(self, theirs: nn.Module, activated: bool) -> None:
        super().__init__()
        self.conv, self.activated = theirs.conv, activated
        conv = theirs.conv.conv
        self.left = (conv.kernel_size[0] - 1) * conv.dilation[0] - (conv.stride[0] - 1)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` float [B, C, T] → float [B, C', T / stride]. With an activation and kernel 1, ``x`` is used up."""
        conv, left, steps = self.conv.conv, self.left, x.shape[-1]
        if left == 0:
            return conv(F.elu_(x) if self.activated else x)
        padded = x.new_empty(*x.shape[:-1], left + max(steps, left + 1))
        inside = padded[..., left : left + steps]
        if self.activated:
            torch.ops.aten.elu.out(x, out=inside)
        else:
            inside.copy_(x)
        padded[..., left + steps :] = 0  # what is too short to be reflected is followed by silence
        padded[..., :left] = padded[..., left + 1 : 2 * left + 1].flip(-1)
        return conv(padded[..., : left + steps])


class _Block(nn.Module):
    """A convolution of kernel 3 and one of kernel 1 with ELUs before them, and one of kernel 1 beside.

    Args:
        theirs: the package's ``SEANetResnetBlock`` with a shortcut.
    """

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        _, wide, _, narrow = theirs.block
        first, second = _Convolution(wide, True), _Convolution(narrow, True)
        self.block = nn.Sequential(nn.Identity(), first, nn.Identity(), second)
        self.shortcut = _Convolution(theirs.shortcut, False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` float [B, C, T] → float [B, C, T]."""
        return self.shortcut(x).add_(self.block(x))
