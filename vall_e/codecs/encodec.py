"""EnCodec (2210.13438) at 24 kHz on Meta's ``encodec`` package: 75 frames/s, 2 to 32 levels of 1,024 codes.

The network is causal and without normalisation over time, so silence behind a clip does not change the codes before
it: clips of different lengths may share a batch when each is first filled up to whole frames. (Below seven frames the
reflection at a clip's start reaches its end; such clips are too short to be speech.)

Dimensions: B batch, N samples, L levels, T frames = ceil(N / 320), n codes per level, d code width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.codecs.base import Codec
from vall_e.codecs.rows import by_rows
from vall_e.codecs.seanet import lean, recur
from vall_e.codecs.stream import Context, WaveStream
from vall_e.codecs.vocos import VocosDecoder
from vall_e.codecs.weights import Published, fill, find_weights, read_saved, read_weights, write_codec
from vall_e.preparation import CodecConfig

FILE = "encodec_24khz-d7cc33bc.th"
_VOCOS = "vocos."  # before the names of its weights in a saved codec
KBPS_PER_LEVEL = 0.75  # 75 frames/s of 10 bits
ARCHITECTURE: dict[str, Any] = {
    "n_filters": 32, "dimension": 128, "ratios": [8, 5, 4, 2], "n_residual_layers": 1, "lstm": 2,
    "n_q": 32, "bins": 1024,
}  # fmt: skip


def published() -> Published:
    """Meta's file, its place in torch's cache and its checksum."""
    cache = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    return Published(f"https://dl.fbaipublicfiles.com/encodec/v0/{FILE}", cache, FILE.split("-")[1].split(".")[0])


class EncodecCodec(Codec):
    """See the module; the attributes and methods of ``vall_e.codecs.base.Codec``.

    Args:
        architecture: sizes of the network; :data:`ARCHITECTURE` is Meta's.
        bandwidth: kbit/s of the published model; sets L = bandwidth / 0.75.
        vocos: decodes in place of the network's own decoder; None: the own one does.

    Raises:
        ValueError: the network or ``vocos`` has fewer levels than ``bandwidth`` asks for, or ``vocos`` another hop.
    """

    name = "encodec"
    sample_rate = 24_000
    residual = True
    padding_safe = True

    def __init__(self, architecture: dict[str, Any], bandwidth: float, vocos: VocosDecoder | None = None) -> None:
        self.architecture = ARCHITECTURE | architecture
        unknown = set(self.architecture) - set(ARCHITECTURE)
        if unknown:
            raise ValueError(f"encodec: unknown sizes {sorted(unknown)}; known are {sorted(ARCHITECTURE)}")
        self.bandwidth = bandwidth
        self.levels, self.codes = round(bandwidth / KBPS_PER_LEVEL), self.architecture["bins"]
        if self.levels > self.architecture["n_q"]:
            raise ValueError(
                f"codec.bandwidth {bandwidth} kbit/s needs {self.levels} levels, the weights have "
                f"{self.architecture['n_q']}: choose a lower bandwidth"
            )
        self.model = _build(self.architecture).eval().requires_grad_(False)
        self.hop = int(self.model.encoder.hop_length)
        self.frame_rate = self.sample_rate / self.hop
        self.vocos = vocos
        if vocos is not None and (vocos.hop != self.hop or vocos.levels < self.levels):
            raise ValueError(
                f"the Vocos decoder has {vocos.levels} levels and {vocos.hop} samples a frame, the codec {self.levels} "
                f"and {self.hop}: choose a lower bandwidth or other codec.decoder_weights"
            )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """``wav`` float [B, 1, N] in -1..1 → codes int64 [B, L, T], T = ceil(N / 320)."""
        wav = F.pad(wav.to(self.device, torch.float32), (0, -wav.shape[-1] % self.hop))
        return by_rows(self._encode, wav, self.architecture["n_filters"] * wav.shape[-1])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """``codes`` int64 [B, l, T] with 1 <= l <= L → wav float [B, 1, T * 320]."""
        if self.vocos is not None:
            return self.vocos(codes)
        samples = codes.shape[-1] * self.hop
        return by_rows(self._decode, codes.to(self.device), self.architecture["n_filters"] * samples)[..., :samples]

    def _encode(self, wav: Tensor) -> Tensor:
        return self.model.quantizer.vq.encode(self.model.encoder(wav), n_q=self.levels).transpose(0, 1)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decoder(self.model.quantizer.vq.decode(codes.transpose(0, 1)))

    def stream(self, look_ahead: int | None = None) -> WaveStream:
        """A decoder for codes that come piece by piece, exact and without looking ahead: the network is causal.

        Vocos is not: exact, it waits for all that its windows and convolutions need.
        """
        if self.vocos is not None:
            return WaveStream(self.vocos, self.hop, self.vocos.context, look_ahead)
        first, lstm, *rest = self.model.decoder.model
        field, rate = 0.0, 1
        for ratio in self.architecture["ratios"]:
            field += 1 / rate  # a transposed convolution touches the frame before
            rate *= ratio
            field += sum(2 * 2**layer for layer in range(self.architecture["n_residual_layers"])) / rate  # kernel 3
        context = Context(math.ceil(field + 6 / rate), 0, 0)  # the last kernel is 7
        decode = torch.no_grad()(nn.Sequential(*rest))
        return WaveStream(decode, self.hop, context, look_ahead, _Recurrent(self.model.quantizer.vq, first, lstm))

    def codebooks(self) -> list[Tensor]:
        """The L code tables, float [n, d]; the codes of a frame stand for the sum of their vectors."""
        return [layer.codebook for layer in self.model.quantizer.vq.layers[: self.levels]]

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors: all that ``load`` needs, offline."""
        description = {"name": self.name, "bandwidth": self.bandwidth, "architecture": self.architecture}
        state = self.model.state_dict()
        if self.vocos is not None:
            description["vocos"] = self.vocos.config
            state = state | {f"{_VOCOS}{name}": value for name, value in self.vocos.state_dict().items()}
        write_codec(folder, description, state)

    @classmethod
    def load(cls, config: CodecConfig, folder: Path | None, device: str = "cpu") -> EncodecCodec:
        """From ``folder`` (what ``save`` wrote), else from ``config.weights``, else Meta's published weights.

        A saved folder keeps the bandwidth and the decoder that it was saved with, so that a model finds the levels it
        was trained on.

        Raises:
            FileNotFoundError: no weights; the message says what was tried.
            ValueError: weights that are not plain tensors or belong to another model.
        """
        source, bandwidth = folder, config.bandwidth
        if source is not None:
            state, description = read_saved(source, cls.name)
            bandwidth = description.get("bandwidth", bandwidth)
        else:
            source = find_weights(cls.name, config.weights, published())
            state, description = read_weights(source)
        codes = (ARCHITECTURE | description.get("architecture", {}))["bins"]
        theirs = {name.removeprefix(_VOCOS): state.pop(name) for name in list(state) if name.startswith(_VOCOS)}
        vocos = None
        if "vocos" in description and folder is not None:
            vocos = VocosDecoder(description["vocos"], theirs["tables"], codes).eval().requires_grad_(False)
            fill(vocos, theirs, source)
        elif folder is None and config.decoder == "vocos":
            vocos = VocosDecoder.load(config.decoder_weights, codes)
        codec = cls(description.get("architecture", {}), bandwidth, None if vocos is None else vocos.to(device))
        fill(codec.model, state, source)
        codec.model.to(device)
        return codec


class _Recurrent:
    """The part of the decoder that remembers everything: codes to the first convolution and the LSTM, with its state.

    A clip's beginning is padded with its own reflection, which takes as many frames as the kernel reaches back.
    """

    def __init__(self, quantizer: nn.Module, conv: nn.Module, lstm: nn.Module) -> None:
        self.quantizer, self.conv, self.lstm = quantizer, conv, lstm
        self.reach = conv.conv.conv.kernel_size[0] - 1
        self.latent: Tensor | None = None
        self.known = 0  # frames at the beginning of the latent that went through
        self.state: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, codes: Tensor, last: bool) -> Tensor:
        """``codes`` int64 [B, l, T], the next ones → features float [B, D, t] of the frames that can be known."""
        new = self.quantizer.decode(codes.to(next(self.conv.parameters()).device).transpose(0, 1))
        self.latent = new if self.latent is None else torch.cat((self.latent, new), dim=-1)
        total = self.latent.shape[-1]
        if total == self.known or (total <= self.reach and not last):
            return new.new_zeros(new.shape[0], self.lstm.lstm.hidden_size, 0)
        x = self.conv(self.latent)[..., self.known :].permute(2, 0, 1)
        y, self.state = recur(self.lstm.lstm, x, self.state)
        self.known = min(total, self.reach)
        self.latent = self.latent[..., total - self.known :]
        return (y + x).permute(1, 2, 0)


def _build(architecture: dict[str, Any]) -> torch.nn.Module:
    """The real network at the given sizes, without weight normalisation; its weights are random and its code tables
    zero until filled."""
    from encodec.model import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    sizes = {key: architecture[key] for key in ("n_filters", "dimension", "ratios", "n_residual_layers", "lstm")}
    encoder = lean(SEANetEncoder(channels=1, norm="none", causal=True, **sizes))
    decoder = lean(SEANetDecoder(channels=1, norm="none", causal=True, **sizes))
    quantizer = ResidualVectorQuantizer(
        dimension=architecture["dimension"], n_q=architecture["n_q"], bins=architecture["bins"]
    )
    bandwidths = [KBPS_PER_LEVEL * architecture["n_q"]]
    return EncodecModel(encoder, decoder, quantizer, bandwidths, EncodecCodec.sample_rate, channels=1)
