"""The networks of NeMo's audio codecs: HiFi-GAN (2010.05646) as decoder, turned around as encoder, residual networks on
mel bands.

Names of modules and of arguments are those of NeMo's checkpoints, but for the wrappers around convolutions and
activations (``plain_names``).

Dimensions: B batch, C channels, D latent width, N samples, T frames, F frequency bins, M mel bands, r samples a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNELS, DILATIONS = (3, 7, 11), (1, 3, 5)


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A NeMo state dict under the names used here."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        name = re.sub(r"\.conv\.(?=weight|bias|parametrizations)", ".", name)
        plain[re.sub(r"(activations?(?:\.\d+)?)\.activation\.", r"\1.", name)] = value
    return plain


class Snake(nn.Module):
    """x + sin²(αx) / α with α for each channel (2006.08195, equation 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha * x).sin().square() / (self.alpha + 1e-9)


class HalfSnake(nn.Module):
    """Snake on the first half of the channels, leaky ReLU on the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.snake_act = Snake(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        half = self.snake_act.alpha.shape[1]
        return torch.cat((self.snake_act(x[:, :half]), F.leaky_relu(x[:, half:])), 1)


def activation(name: str, channels: int) -> nn.Module:
    """The activation that a configuration names. Raises ValueError for one that is not known."""
    known = {"elu": nn.ELU, "lrelu": nn.LeakyReLU, "snake": Snake, "half_snake": HalfSnake}
    if name not in known:
        raise ValueError(f"activation {name!r} is not known; known are {', '.join(known)}")
    return known[name](channels) if "snake" in name else known[name]()


def convolution(inputs: int, outputs: int, kernel: int, mode: str, dilation: int = 1, stride: int = 1) -> nn.Conv1d:
    """A convolution that keeps the number of steps, or divides it by ``stride``."""
    pad = (kernel - stride + 1) // 2 if stride > 1 else dilation * (kernel - 1) // 2
    return nn.Conv1d(inputs, outputs, kernel, stride, pad, dilation, padding_mode=mode)


class ResidualBlock(nn.Module):
    """Two convolutions with activations before them, and a residual."""

    def __init__(self, channels: int, filters: int, kernel: int, act: str, mode: str, dilation: int = 1) -> None:
        super().__init__()
        self.input_activation, self.skip_activation = activation(act, channels), activation(act, filters)
        self.input_conv = convolution(channels, filters, kernel, mode, dilation)
        self.skip_conv = convolution(filters, channels, kernel, mode)
        self.reach = self.input_conv.padding[0] + self.skip_conv.padding[0]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.skip_conv(self.skip_activation(self.input_conv(self.input_activation(x))))


class _Chain(nn.Module):
    """Residual blocks of one kernel and growing dilation."""

    def __init__(self, channels: int, kernel: int, dilations: Iterable[int], act: str, mode: str) -> None:
        super().__init__()
        blocks = (ResidualBlock(channels, channels, kernel, act, mode, dilation) for dilation in dilations)
        self.res_blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        return x


class Fusion(nn.Module):
    """The mean of chains with different kernels (2010.05646, section 2.2, multi-receptive field fusion)."""

    def __init__(self, channels: int, kernels: Iterable[int], dilations: Sequence[int], act: str, mode: str) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(_Chain(channels, kernel, dilations, act, mode) for kernel in kernels)
        self.reach = max(sum(block.reach for block in chain.res_blocks) for chain in self.res_blocks)

    def forward(self, x: Tensor) -> Tensor:
        return sum(chain(x) for chain in self.res_blocks) / len(self.res_blocks)


class HiFiGANEncoder(nn.Module):
    """Samples to latents: fusion and a strided convolution for each rate. Arguments as in NeMo's class.

    Attributes:
        width: channels of the layers at the full rate, the largest.
    """

    def __init__(
        self,
        encoded_dim: int,
        down_sample_rates: Sequence[int] = (2, 2, 8, 8),
        base_channels: int = 32,
        in_kernel_size: int = 7,
        out_kernel_size: int = 7,
        resblock_kernel_sizes: Sequence[int] = KERNELS,
        resblock_dilation_sizes: Sequence[int] = DILATIONS,
        activation: str = "lrelu",
        pad_mode: str = "reflect",
    ) -> None:
        super().__init__()
        widths = [base_channels * 2**i for i in range(len(down_sample_rates) + 1)]
        kernels, dilations = resblock_kernel_sizes, resblock_dilation_sizes
        self.width = base_channels
        self.pre_conv = convolution(1, base_channels, in_kernel_size, pad_mode)
        self.activations = nn.ModuleList(_activation(activation, width) for width in widths[:-1])
        self.res_layers = nn.ModuleList(Fusion(w, kernels, dilations, activation, pad_mode) for w in widths[:-1])
        self.down_sample_conv_layers = nn.ModuleList(
            convolution(w, 2 * w, 2 * rate, pad_mode, stride=rate)
            for w, rate in zip(widths[:-1], down_sample_rates, strict=True)
        )
        self.post_activation = _activation(activation, widths[-1])
        self.post_conv = convolution(widths[-1], encoded_dim, out_kernel_size, pad_mode)

    def forward(self, wav: Tensor) -> Tensor:
        """``wav`` float [B, 1, N] → latents float [B, D, T]."""
        x = self.pre_conv(wav)
        for fusion, act, down in zip(self.res_layers, self.activations, self.down_sample_conv_layers, strict=True):
            x = down(act(fusion(x)))
        return self.post_conv(self.post_activation(x))


class HiFiGANDecoder(nn.Module):
    """Latents to samples: a transposed convolution and fusion for each rate. Arguments as in NeMo's class.

    Attributes:
        reach: frames on either side of a frame that its samples are made from.
        width: channels of the layers at the full rate, the largest.
    """

    def __init__(
        self,
        input_dim: int,
        up_sample_rates: Sequence[int] = (8, 8, 2, 2),
        base_channels: int = 512,
        in_kernel_size: int = 7,
        out_kernel_size: int = 3,
        resblock_kernel_sizes: Sequence[int] = KERNELS,
        resblock_dilation_sizes: Sequence[int] = DILATIONS,
        activation: str = "lrelu",
        output_activation: str = "tanh",
        pad_mode: str = "reflect",
        n_groups_equal_to_out_channels: bool = False,
    ) -> None:
        super().__init__()
        if output_activation not in ("tanh", "clamp"):
            raise ValueError(f"output_activation {output_activation!r} is not known; known are tanh, clamp")
        widths = [base_channels // 2**i for i in range(len(up_sample_rates) + 1)]
        kernels, dilations = resblock_kernel_sizes, resblock_dilation_sizes
        self.width = widths[-1]
        self.pre_conv = convolution(input_dim, base_channels, in_kernel_size, pad_mode)
        self.activations = nn.ModuleList(_activation(activation, width) for width in widths[:-1])
        self.up_sample_conv_layers = nn.ModuleList(
            nn.ConvTranspose1d(
                wide, slim, 2 * rate, rate, (rate + 1) // 2, rate % 2, slim if n_groups_equal_to_out_channels else 1
            )
            for wide, slim, rate in zip(widths[:-1], widths[1:], up_sample_rates, strict=True)
        )
        self.res_layers = nn.ModuleList(Fusion(w, kernels, dilations, activation, pad_mode) for w in widths[1:])
        self.post_activation = _activation(activation, widths[-1])
        self.post_conv = convolution(widths[-1], 1, out_kernel_size, pad_mode)
        self.clamps = output_activation == "clamp"
        self.reach, rate = float(self.pre_conv.padding[0]), 1
        for fusion, up in zip(self.res_layers, up_sample_rates, strict=True):
            self.reach += 1 / rate  # a transposed convolution touches one neighbour
            rate *= up
            self.reach += fusion.reach / rate
        self.reach += self.post_conv.padding[0] / rate

    def forward(self, z: Tensor) -> Tensor:
        """``z`` float [B, D, T] → wav float [B, 1, N] in -1..1."""
        x = self.pre_conv(z)
        for act, up, fusion in zip(self.activations, self.up_sample_conv_layers, self.res_layers, strict=True):
            x = fusion(up(act(x)))
        x = self.post_conv(self.post_activation(x))
        return x.clamp(-1, 1) if self.clamps else x.tanh()


class ResNetEncoder(nn.Module):
    """Mel bands to latents at their own rate. Arguments as in NeMo's class."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int = 6,
        hidden_channels: int = 256,
        filters: int = 768,
        kernel_size: int = 3,
        dropout_rate: float = 0.1,
        activation: str = "lrelu",
        pad_mode: str = "reflect",
    ) -> None:
        super().__init__()
        del dropout_rate  # of training
        self.pre_conv = convolution(in_channels, hidden_channels, kernel_size, pad_mode)
        self.res_layers = nn.ModuleList(
            ResidualBlock(hidden_channels, filters, kernel_size, activation, pad_mode) for _ in range(num_layers)
        )
        self.post_activation = _activation(activation, hidden_channels)
        self.post_conv = convolution(hidden_channels, out_channels, kernel_size, pad_mode)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_conv(x)
        for block in self.res_layers:
            x = block(x)
        return self.post_conv(self.post_activation(x))


class MultiBandMelEncoder(nn.Module):
    """Samples to latents through a mel spectrogram, each of its bands by a network of its own.

    Args:
        mel_bands: first and last + 1 mel bin of each network.
        mel_processor: ``mel_dim``, ``win_length``, ``hop_length``, ``log_guard`` of the spectrogram; its filters and
            its window are in the checkpoint.
        encoder: arguments of ``ResNetEncoder``.

    Attributes:
        width: values that a sample has in the windows that overlap.
    """

    def __init__(self, mel_bands: Sequence[Sequence[int]], mel_processor: dict[str, object], **encoder: object) -> None:
        super().__init__()
        self.window, self.hop = int(mel_processor["win_length"]), int(mel_processor["hop_length"])
        self.width = self.window / self.hop
        self.guard = float(mel_processor.get("log_guard", 1.0))
        bins = self.window // 2 + 1
        self.bands = [(int(first), int(end)) for first, end in mel_bands]
        self.register_buffer("fb", torch.zeros(1, int(mel_processor.get("mel_dim", 80)), bins))
        self.register_buffer("hann", torch.zeros(self.window))
        self.encoders = nn.ModuleList(ResNetEncoder(end - first, **encoder) for first, end in self.bands)

    def forward(self, wav: Tensor) -> Tensor:
        """``wav`` float [B, 1, N] → latents float [B, D, T]."""
        margin = (self.window - self.hop) // 2
        frames = F.pad(wav[:, 0], (margin, margin)).unfold(-1, self.window, self.hop) * self.hann
        mel = (self.fb @ torch.fft.rfft(frames).abs().transpose(1, 2) + self.guard).log()
        pieces = zip(self.encoders, self.bands, strict=True)
        return torch.cat([encoder(mel[:, first:end]) for encoder, (first, end) in pieces], 1)


_activation = activation  # the classes have an argument of this name
