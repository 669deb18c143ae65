"""Small codecs of the real classes with seeded random weights, and one of finite scalars, shared by the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from tests.codecs.nemo_reference import CONFIGS
from vall_e.codecs.base import Codec
from vall_e.codecs.dac import DacCodec
from vall_e.codecs.encodec import EncodecCodec
from vall_e.codecs.mel import MelCodec
from vall_e.codecs.nemo import NemoCodec
from vall_e.codecs.stream import Context, WaveStream
from vall_e.preparation import MelCodecConfig

SMALL_ENCODEC = {"n_filters": 2, "dimension": 16, "lstm": 1, "n_q": 4, "bins": 64}
SMALL_DAC = {
    "encoder_dim": 4, "encoder_rates": [2, 4, 5], "decoder_dim": 32, "decoder_rates": [5, 4, 2],
    "n_codebooks": 3, "codebook_size": 32, "codebook_dim": 4, "sample_rate": 16_000,
}  # fmt: skip


def encodec(bandwidth: float = 1.5, seed: int = 0) -> EncodecCodec:
    """4 levels of which ``bandwidth`` 1.5 uses two."""
    torch.manual_seed(seed)
    codec = EncodecCodec(SMALL_ENCODEC, bandwidth)
    for name, value in codec.model.named_parameters():
        if name.endswith("bias"):  # or a constant drowns what the latents say about the sound
            value.zero_()
        if value.dim() == 3:
            value.mul_(2.5)
    latent = codec.model.encoder(0.3 * torch.randn(1, 1, 24_000))
    for level, layer in enumerate(codec.model.quantizer.vq.layers):
        layer._codebook.embed.copy_(latent.std() / 2**level * torch.randn_like(layer._codebook.embed))
        layer._codebook.inited.fill_(1)
    return codec


def dac(seed: int = 0) -> DacCodec:
    """3 levels, hop 40."""
    torch.manual_seed(seed)
    codec = DacCodec(SMALL_DAC)
    for name, value in codec.model.named_parameters():
        if name.endswith("bias"):
            value.copy_(0.3 * torch.randn_like(value))
        if name.endswith("weight") and value.dim() == 3:
            gain = 0.4 + 0.4 * torch.rand(len(value), 1, 1)
            value.copy_(gain * F.normalize(torch.randn_like(value).flatten(1)).view_as(value))
    return codec


def nemo(seed: int = 0) -> NemoCodec:
    """3 levels of 1,000 codes, hop 40, weights as drawn for NeMo's own classes."""
    torch.manual_seed(seed)
    codec = NemoCodec(CONFIGS["audio"])
    for name, value in codec.model.named_parameters():
        if value.dim() == 3 and not name.endswith("alpha"):
            value.copy_(torch.randn_like(value) * 1.2 / (value.shape[1] * value.shape[2]) ** 0.5)
    return codec


def mel(seed: int = 0) -> MelCodec:
    """2 levels of 32 codes."""
    torch.manual_seed(seed)
    config = MelCodecConfig(n_mels=20, levels=2, codes=32, code_dim=8, width=16, griffin_lim_iters=2)
    codec = MelCodec(config).eval()
    with torch.no_grad():
        wav = 0.3 * torch.randn(2, 1, 16_000)
        codec.measure(codec.magnitude(wav))
        for table in codec.quantizer.tables:
            table.copy_(torch.randn_like(table))
    return codec


class Fsq(Codec):
    """Finite scalars (2309.15505): 3 levels, groups of 2 scalars with 3 values each, of a rotated frame of 160 samples.

    As good as a codec can be whose levels have no order: each says what no other does.
    """

    name, residual, padding_safe = "fsq", False, True
    sample_rate, hop, frame_rate = 8000, 160, 50.0
    levels, group, values = 3, 2, 3
    codes = values**group
    gain = 5.0

    def __init__(self) -> None:
        noise = torch.randn(self.hop, self.levels * self.group, generator=torch.Generator().manual_seed(0))
        self.basis = torch.linalg.qr(noise).Q.contiguous()
        self.grid = torch.cartesian_prod(*[torch.arange(self.values) - self.values // 2] * self.group).float()

    def encode(self, wav: Tensor) -> Tensor:
        wav = F.pad(wav[:, 0], (0, -wav.shape[-1] % self.hop))
        scalars = (self.gain * wav.unflatten(-1, (-1, self.hop)) @ self.basis).tanh() * (self.values // 2)
        digits = scalars.round().long().unflatten(-1, (self.levels, self.group)) + self.values // 2
        places = self.values ** torch.arange(self.group - 1, -1, -1)
        return (digits * places).sum(-1).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        latent = sum(book[codes[:, level]] for level, book in enumerate(self.codebooks()[: codes.shape[1]]))
        return (latent @ self.basis.T / self.gain).flatten(1)[:, None]

    def stream(self, look_ahead: int | None = None) -> WaveStream:
        return WaveStream(self.decode, self.hop, Context(0, 0, 0), look_ahead)

    def codebooks(self) -> list[Tensor]:
        columns = torch.eye(self.levels * self.group).split(self.group)
        return [self.grid @ own for own in columns]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text('{"name": "fsq"}\n')
        save_file({"basis": self.basis}, folder / "model.safetensors")
