"""DAC (2306.06546) on Descript's ``dac`` package at 44.1 kHz (9 levels), 24 kHz (32) or 16 kHz (12), 1,024 codes each.

Its convolutions look both ways, so what stands behind a clip in a batch changes the codes of the clip's last frames:
only clips of equal length may share a batch.

Dimensions: B batch, N samples, L levels, T frames = ceil(N / hop), n codes per level, d latent width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vall_e.codecs.base import Codec
from vall_e.codecs.rows import by_rows
from vall_e.codecs.stream import Context, WaveStream
from vall_e.codecs.weights import (
    Published,
    fill,
    find_weights,
    read_saved,
    read_weights,
    without_weight_norm,
    write_codec,
)
from vall_e.preparation import CodecConfig

_LOW_RATE = {"encoder_rates": [2, 4, 5, 8], "decoder_rates": [8, 5, 4, 2]}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "44khz": {"sample_rate": 44_100, "n_codebooks": 9},
    "24khz": {"sample_rate": 24_000, "n_codebooks": 32, **_LOW_RATE},
    "16khz": {"sample_rate": 16_000, "n_codebooks": 12, **_LOW_RATE},
}
_FILES = {
    "44khz": ("0.0.1", "weights.pth"), "24khz": ("0.0.4", "weights_24khz.pth"), "16khz": ("0.0.5", "weights_16khz.pth"),
}  # fmt: skip


def published(rate: str) -> Published:
    """Descript's file for one rate and its place in the ``dac`` package's cache."""
    tag, file = _FILES[rate]
    cache = Path.home() / ".cache" / "descript" / "dac" / f"weights_{rate}_8kbps_{tag}.pth"
    return Published(f"https://github.com/descriptinc/descript-audio-codec/releases/download/{tag}/{file}", cache)


class DacCodec(Codec):
    """See the module; the attributes and methods of ``vall_e.codecs.base.Codec``.

    Args:
        architecture: arguments of ``dac.model.DAC``; those left out keep its defaults (the 44.1 kHz model).
    """

    name = "dac"
    residual = True
    padding_safe = False

    def __init__(self, architecture: dict[str, Any]) -> None:
        from dac.model import DAC

        try:
            self.model = without_weight_norm(DAC(**architecture)).eval().requires_grad_(False)
        except TypeError as error:
            raise ValueError(f"dac: the description of the network does not fit: {error}") from None
        self.architecture = dict(architecture)
        self.sample_rate, self.hop = int(self.model.sample_rate), int(self.model.hop_length)
        self.frame_rate = self.sample_rate / self.hop
        self.levels, self.codes = self.model.n_codebooks, self.model.codebook_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """``wav`` float [B, 1, N] in -1..1 → codes int64 [B, L, T], T = ceil(N / hop)."""
        wav = F.pad(wav.to(self.device, torch.float32), (0, -wav.shape[-1] % self.hop))
        return by_rows(lambda part: self.model.encode(part)[1], wav, self.model.encoder_dim * wav.shape[-1])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """``codes`` int64 [B, l, T] with 1 <= l <= L → wav float [B, 1, T * hop].

        A transposed convolution with an odd stride gives one sample too few; the end is filled with silence.
        """
        samples = codes.shape[-1] * self.hop
        width = self.model.decoder_dim / 2 ** len(self.model.decoder_rates)  # of the last layers, the widest in all
        wav = by_rows(self._decode, codes.to(self.device), width * samples)
        return F.pad(wav, (0, samples - wav.shape[-1]))

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(self.model.quantizer.from_codes(codes)[0])

    def stream(self, look_ahead: int | None = None) -> WaveStream:
        """A decoder for codes that come piece by piece; by default it waits for all that a frame's samples need."""
        field, rate = 3.0, 1  # half the kernel of the first convolution, in frames
        for stride in self.model.decoder_rates:
            field += 1 / rate  # a transposed convolution touches one neighbour
            rate *= stride
            field += 3 * (1 + 3 + 9) / rate  # three residual units of kernel 7
        context = math.ceil(field + 3 / rate)
        return WaveStream(self.decode, self.hop, Context(context, context, context), look_ahead)

    @torch.no_grad()
    def codebooks(self) -> list[Tensor]:
        """The L code tables projected into the latent space, float [n, d]; the codes of a frame stand for their sum."""
        return [q.out_proj(q.codebook.weight.T[None])[0].T.contiguous() for q in self.model.quantizer.quantizers]

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors: all that ``load`` needs, offline."""
        write_codec(folder, {"name": self.name, "architecture": self.architecture}, self.model.state_dict())

    @classmethod
    def load(cls, config: CodecConfig, folder: Path | None, device: str = "cpu") -> DacCodec:
        """From ``folder`` (what ``save`` wrote), else from ``config.weights``, else Descript's published weights.

        Raises:
            FileNotFoundError: no weights; the message says what was tried.
            ValueError: weights that are not plain tensors or belong to another model.
        """
        source = folder
        if source is not None:
            state, description = read_saved(source, cls.name)
        else:
            source = find_weights(cls.name, config.weights, published(config.dac_rate))
            state, description = read_weights(source)
        codec = cls(description.get("architecture") or ARCHITECTURES[config.dac_rate])
        fill(codec.model, state, source)
        codec.model.to(device)
        return codec
