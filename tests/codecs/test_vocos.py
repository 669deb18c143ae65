"""Vocos for EnCodec's codes: the package's own networks, small weights in a folder, no download."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file

from tests.codecs import small
from tests.codecs.test_protocol import speech
from tests.codecs.test_stream import assert_equal, streamed
from vall_e.codecs.base import Codec, load_codec
from vall_e.codecs.vocos import LEVELS
from vall_e.preparation import CodecConfig

BACKBONE = {
    "class_path": "vocos.models.VocosBackbone",
    "init_args": {
        "input_channels": 16, "dim": 12, "intermediate_dim": 24, "num_layers": 2, "adanorm_num_embeddings": 4,
    },
}  # fmt: skip
HEAD = {
    "class_path": "vocos.heads.ISTFTHead",
    "init_args": {"dim": 12, "n_fft": 1280, "hop_length": 320, "padding": "same"},
}
EXTRACTOR = {"class_path": "vocos.feature_extractors.EncodecFeatures", "init_args": {"encodec_model": "encodec_24khz"}}


def package(levels: int = 4):
    """Vocos as the package builds it, without its feature extractor, and tables [levels * 64, 16]."""
    from vocos.heads import ISTFTHead
    from vocos.models import VocosBackbone
    from vocos.pretrained import Vocos

    torch.manual_seed(0)
    model = Vocos(torch.nn.Identity(), VocosBackbone(**BACKBONE["init_args"]), ISTFTHead(**HEAD["init_args"])).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * (0.2 if "head" in name else 0.5))
    return model, torch.randn(levels * 64, 16)


def write(folder: Path, levels: int = 4, config: dict | None = None, kind: str = "pytorch_model.bin") -> Path:
    model, tables = package(levels)
    state = {**model.state_dict(), "feature_extractor.codebook_weights": tables}
    folder.mkdir(exist_ok=True)
    config = config or {"feature_extractor": EXTRACTOR, "backbone": BACKBONE, "head": HEAD}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_file(state, folder / kind) if kind.endswith("safetensors") else torch.save(state, folder / kind)
    return folder


def config(tmp_path: Path, vocos: Path, bandwidth: float = 3.0) -> CodecConfig:
    small.encodec().save(tmp_path / "encodec")
    return CodecConfig(
        name="encodec", weights=str(tmp_path / "encodec"), bandwidth=bandwidth, decoder="vocos",
        decoder_weights=str(vocos),
    )  # fmt: skip


@pytest.fixture
def codec(tmp_path):
    return load_codec(config(tmp_path, write(tmp_path / "vocos")))


@pytest.mark.parametrize("levels, bandwidth_id", [(1, 0), (2, 0), (3, 1), (4, 1)])
def test_waves_are_the_packages_own(codec, levels, bandwidth_id):
    codes = codec.encode(speech(codec, 2, 0.4))[:, :levels]
    model, tables = package()
    features = sum(tables[codes[:, level] + 64 * level] for level in range(levels)).transpose(1, 2)
    expected = model.decode(features, bandwidth_id=torch.tensor([bandwidth_id]))
    wav = codec.decode(codes)
    assert wav.shape == (2, 1, codes.shape[-1] * 320) and wav.std() > 1e-3
    torch.testing.assert_close(wav[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_codes_are_encodecs_and_the_protocol_holds(codec):
    assert isinstance(codec, Codec) and codec.levels == 4
    wav = speech(codec, 1, 0.5)
    own = small.encodec(bandwidth=3.0)
    codes = codec.encode(wav)
    assert torch.equal(codes, own.encode(wav))
    assert not torch.allclose(codec.decode(codes), own.decode(codes))


@pytest.mark.parametrize("sizes", [[1], [3, 1, 8], [1000]], ids=str)
def test_any_pieces_are_the_whole(codec, sizes):
    codes = codec.encode(speech(codec, 1, 0.9))[..., :60]
    assert_equal(streamed(codec, codes, sizes), codec.decode(codes))


def test_it_waits_for_just_what_its_samples_are_made_from(codec):
    codes = codec.encode(speech(codec, 1, 0.9))[..., :60]
    reach = codec.stream().look_ahead
    other = codes.clone()
    other[..., 30:] = (other[..., 30:] + 1) % codec.codes
    changed = (codec.decode(codes) - codec.decode(other)).abs()[0, 0].unflatten(0, (-1, 320)).amax(-1) > 0
    assert not changed[: 30 - reach].any() and changed[30 - reach]


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "model.safetensors"])
def test_a_saved_codec_keeps_its_decoder_and_needs_the_folder_no_more(kind, tmp_path):
    settings = config(tmp_path, write(tmp_path / "vocos", kind=kind))
    codec = load_codec(settings)
    codec.save(tmp_path / "saved")
    (tmp_path / "vocos" / kind).unlink()
    again = load_codec(CodecConfig(name="encodec"), tmp_path / "saved")
    codes = codec.encode(speech(codec, 1, 0.3))
    assert torch.equal(again.encode(speech(codec, 1, 0.3)), codes)
    assert torch.equal(again.decode(codes), codec.decode(codes))
    again.save(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_too_few_levels_or_another_hop_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Vocos decoder has 2 levels and 320.*codec 4"):
        load_codec(config(tmp_path, write(tmp_path / "few", levels=2)))
    head = HEAD | {"init_args": HEAD["init_args"] | {"hop_length": 256}}
    with pytest.raises(ValueError, match=r"256 samples a frame"):
        load_codec(config(tmp_path, write(tmp_path / "hop", config={"backbone": BACKBONE, "head": head})))


@pytest.mark.parametrize("part, change, message", [
    ("backbone", {"class_path": "vocos.models.VocosResNetBackbone"}, "backbone is a VocosResNetBackbone"),
    ("head", {"class_path": "os.system", "init_args": {"command": "true"}}, "head is a system; this loader knows"),
    ("head", {"init_args": HEAD["init_args"] | {"padding": "center"}}, "padding must be 'same'"),
    ("backbone", {"init_args": {"widht": 1}}, "description of the backbone does not fit: .*widht"),
])  # fmt: skip
def test_other_networks_are_refused_by_name(part, change, message, tmp_path):
    parts = {"backbone": BACKBONE, "head": HEAD}
    folder = write(tmp_path / "other", config=parts | {part: parts[part] | change})
    with pytest.raises(ValueError, match=message):
        load_codec(config(tmp_path, folder))


def test_a_pickle_is_not_run_and_what_is_missing_is_named(tmp_path, monkeypatch):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    folder = write(tmp_path / "vocos")
    torch.save({"x": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is not a file of plain tensors"):
        load_codec(config(tmp_path, folder))
    assert not (tmp_path / "harm").exists()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected config.yaml with model.safetensors or pytorch_model.bin"):
        load_codec(config(tmp_path, folder))
    with pytest.raises(FileNotFoundError, match=r"codec.decoder_weights: .*nowhere is no folder"):
        load_codec(config(tmp_path, tmp_path / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    published = config(tmp_path, folder).model_copy(update={"decoder_weights": None})
    with pytest.raises(FileNotFoundError, match=r"config.yaml of charactr/vocos-encodec-24khz is not in the hub"):
        load_codec(published)


@pytest.mark.parametrize("settings, message", [
    ({"name": "dac", "decoder": "vocos"}, "decodes the codes of encodec, not those of dac"),
    ({"name": "encodec", "decoder": "vocos", "bandwidth": 24.0}, "at most 12 kbit/s"),
    ({"name": "encodec", "decoder_weights": "x"}, "is for codec.decoder: vocos"),
])  # fmt: skip
def test_combinations_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        CodecConfig(**settings)


def test_levels_of_the_bandwidths_are_encodecs():
    assert [round(bandwidth / 0.75) for bandwidth in (1.5, 3.0, 6.0, 12.0)] == list(LEVELS)
