"""Weight normalisation is multiplied out: the codecs are the packages' own models with it, whatever kind of weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.codecs import small
from tests.codecs.test_protocol import speech
from tests.codecs.test_stream import streamed
from vall_e.codecs.base import Codec, load_codec
from vall_e.codecs.weights import fill, multiplied_out, write_codec
from vall_e.preparation import CodecConfig


@dataclass(frozen=True)
class Theirs:
    """A package's own model with weight normalisation.

    Attributes:
        model: seeded; the gains are not the norms of the directions.
        description: what a saved codec's config.json says.
        encode: wav float [B, 1, N] → codes int64 [B, L, T].
        decode: codes int64 [B, L, T] → wav float [B, 1, N].
    """

    model: nn.Module
    description: dict[str, Any]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def encodec() -> Theirs:
    from encodec.model import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    sizes = {key: value for key, value in small.SMALL_ENCODEC.items() if key not in ("n_q", "bins")}
    levels, bins = small.SMALL_ENCODEC["n_q"], small.SMALL_ENCODEC["bins"]
    networks = [kind(causal=True, norm="weight_norm", **sizes) for kind in (SEANetEncoder, SEANetDecoder)]
    quantizer = ResidualVectorQuantizer(sizes["dimension"], levels, bins=bins)
    model = drawn(EncodecModel(*networks, quantizer, [1.5], 24_000, 1), gain=1.2, bias=0.0)
    latent = model.encoder(0.3 * torch.randn(1, 1, 24_000))
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.copy_(latent.std() * torch.randn_like(layer._codebook.embed))
        layer._codebook.inited.fill_(1)
    description = {"name": "encodec", "bandwidth": 1.5, "architecture": small.SMALL_ENCODEC}
    return Theirs(
        model,
        description,
        lambda wav: model.quantizer.vq.encode(model.encoder(wav), n_q=2).transpose(0, 1),
        lambda codes: model.decode([(codes, None)]),
    )


def dac() -> Theirs:
    from dac.model import DAC

    model = drawn(DAC(**small.SMALL_DAC), gain=0.5, bias=0.05)
    description = {"name": "dac", "architecture": small.SMALL_DAC}
    return Theirs(
        model,
        description,
        lambda wav: model.encode(wav)[1],
        lambda codes: model.decode(model.quantizer.from_codes(codes)[0]),
    )


def drawn(model: nn.Module, gain: float, bias: float) -> nn.Module:
    model = model.eval().requires_grad_(False)
    for name, value in model.named_parameters():
        if name.endswith("weight_v"):
            value.copy_(torch.randn_like(value))
        if name.endswith("weight_g"):
            value.copy_(gain * (1 + torch.rand_like(value)))
        if name.endswith("bias"):
            value.copy_(bias * torch.randn_like(value))
    return model


@pytest.fixture(params=[encodec, dac], scope="module")
def theirs(request: pytest.FixtureRequest) -> Theirs:
    torch.manual_seed(0)
    return request.param()


def parametrized(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ``torch.nn.utils.parametrizations`` names them."""
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    return {re.sub(r"weight_[gv]$", lambda old: new[old[0]], name): value for name, value in state.items()}


def loaded(kind: str, theirs: Theirs, folder: Path) -> Codec:
    """Our codec with the weights of ``theirs``, that come as ``kind`` says."""
    name, state = theirs.description["name"], theirs.model.state_dict()
    assert sum(key.endswith("weight_g") for key in state) > 10
    write_codec(folder / "old", theirs.description, parametrized(state) if kind == "parametrized" else state)
    if kind == "file":
        file = folder / "old/model.safetensors"
        return load_codec(CodecConfig(name=name, weights=str(file), bandwidth=1.5))
    codec = load_codec(CodecConfig(name=name), folder / "old")
    if kind != "saved again":
        return codec
    codec.save(folder / "new")
    return load_codec(CodecConfig(name=name), folder / "new")


@pytest.mark.parametrize("kind", ["file", "old folder", "parametrized", "saved again"])
def test_codes_and_waves_are_those_of_the_packages_model_with_it(theirs: Theirs, kind: str, tmp_path: Path) -> None:
    codec = loaded(kind, theirs, tmp_path)
    assert not any("weight_g" in name or "parametrizations" in name for name in codec.model.state_dict())
    assert not any(layer._forward_pre_hooks for layer in codec.model.modules())
    wav = speech(codec, 2, 0.6)
    wav = wav[..., : wav.shape[-1] // codec.hop * codec.hop]
    with torch.no_grad():
        codes = theirs.encode(wav)
        waves = theirs.decode(codes)
    assert codes.unique().numel() > 20 and waves.abs().max() > 1e-2
    assert torch.equal(codec.encode(wav), codes)
    mine = codec.decode(codes)[..., : waves.shape[-1]]
    assert (mine - waves).abs().max() < 1e-5 * waves.abs().max()
    pieces = torch.cat(streamed(codec, codes, [1, 4]), -1)[..., : waves.shape[-1]]
    assert (pieces - waves).abs().max() < 1e-5 * waves.abs().max()


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 4, 5), nn.ConvTranspose1d(3, 4, 5), nn.Linear(3, 4)], ids=repr)
def test_multiplied_out_is_what_torchs_own_layers_compute(layer: nn.Module) -> None:
    torch.manual_seed(0)
    normed = parametrizations.weight_norm(layer)
    normed.parametrizations.weight.original0.data.uniform_(0.5, 2.0)
    state = {f"a.{name}": value for name, value in normed.state_dict().items()}
    plain = multiplied_out(state)
    assert set(plain) == {"a.weight", "a.bias"} and torch.equal(plain["a.weight"], normed.weight)
    assert multiplied_out(plain).keys() == plain.keys() and len(state) == 3


def test_half_a_pair_is_refused() -> None:
    torch.manual_seed(0)
    v, g, bias = torch.randn(4, 3, 5), torch.ones(4, 1, 1), torch.zeros(4)
    for state in ({"weight_g": g, "bias": bias}, {"weight_v": v, "bias": bias}):
        with pytest.raises(ValueError, match=r"half\.th does not fit this codec.*weight_[gv]"):
            fill(nn.Conv1d(3, 4, 5), state, "half.th")
    for odd in (g[:3], g[..., 0], torch.ones(1)):
        with pytest.raises(ValueError, match=r"odd\.th does not fit this codec.*weight_g"):
            fill(nn.Conv1d(3, 4, 5), {"weight_v": v, "weight_g": odd, "bias": bias}, "odd.th")
