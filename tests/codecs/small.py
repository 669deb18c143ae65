"""Small codecs of the real classes with seeded random weights, shared by the tests."""

from __future__ import annotations

import torch

from vall_e.codecs.dac import DacCodec
from vall_e.codecs.encodec import EncodecCodec
from vall_e.codecs.mel import MelCodec
from vall_e.config import MelCodecConfig

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
        if name.endswith("weight_g"):
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
        if name.endswith("weight_v"):
            value.copy_(torch.randn_like(value))
        if name.endswith("bias"):
            value.copy_(0.3 * torch.randn_like(value))
        if name.endswith("weight_g"):
            value.copy_(0.4 + 0.4 * torch.rand_like(value))
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
