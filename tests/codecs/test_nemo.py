"""NeMo's codecs: our networks agree with NeMo's own classes on drawn weights, files are read without running them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.codecs.nemo_reference import CONFIGS, drawn, wave, write_nemo
from vall_e.codecs.base import load_codec
from vall_e.codecs.fsq import GroupedScalars
from vall_e.codecs.hifigan import HiFiGANDecoder
from vall_e.codecs.nemo import NemoCodec
from vall_e.preparation import CodecConfig

REFERENCE = np.load(Path(__file__).with_name("nemo.npz"))


def checkpoint(kind: str) -> dict[str, torch.Tensor]:
    """NeMo's state dict, as the reference was made with."""
    facts = json.loads(str(REFERENCE[f"{kind}/facts"]))
    start = f"{kind}/kept."
    kept = {name.removeprefix(start): REFERENCE[name] for name in REFERENCE.files if name.startswith(start)}
    return drawn(facts["names"], facts["shapes"], kept)


@pytest.fixture(params=CONFIGS)
def file(request, tmp_path):
    path = tmp_path / f"{request.param}.nemo"
    write_nemo(path, CONFIGS[request.param], checkpoint(request.param))
    return path


def load(path) -> NemoCodec:
    return load_codec(CodecConfig(name="nemo", weights=str(path)))


def test_codes_and_waves_are_those_of_nemos_own_classes(file):
    """NeMo 3 leaves the last mel frame out: what is made from it differs, and its silence behind it."""
    codec, kind = load(file), file.stem
    codes, wav = torch.from_numpy(REFERENCE[f"{kind}/codes"]).long(), torch.from_numpy(REFERENCE[f"{kind}/wav"])
    frames = codes.shape[-1]
    same = frames if kind == "audio" else frames - 8
    mine = codec.encode(wave())
    assert mine.shape == (2, 3, 60) and codes[0].unique().numel() > 20
    assert torch.equal(mine[..., :same], codes[..., :same])
    end = same * 40
    torch.testing.assert_close(codec.decode(codes)[:, 0, :end], wav[:, :end], rtol=1e-4, atol=1e-5)
    assert wav.abs().max() > 0.05 and wav.std() > 0.01


def test_the_saved_codec_needs_the_file_no_more(file, tmp_path):
    codec = load(file)
    codec.save(tmp_path / "saved")
    file.unlink()
    for again in (load(tmp_path / "saved"), load_codec(CodecConfig(name="nemo"), tmp_path / "saved")):
        codes = codec.encode(wave())
        assert torch.equal(again.encode(wave()), codes)
        assert torch.equal(again.decode(codes), codec.decode(codes))


def test_a_clip_of_one_frame_and_a_compressed_file(file, tmp_path):
    codec = load(file)
    codes = codec.encode(wave()[..., :10])
    assert codes.shape == (2, 3, 1) and codec.decode(codes).shape == (2, 1, 40)
    packed = tmp_path / "packed.nemo"
    with tarfile.open(file) as tar, tarfile.open(packed, "w:gz") as out:
        for member in tar.getmembers():
            out.addfile(member, tar.extractfile(member))
    assert torch.equal(load(packed).encode(wave()), codec.encode(wave()))


def test_old_names_of_weight_normalisation(file, tmp_path):
    state = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in checkpoint(file.stem).items()
    }
    write_nemo(tmp_path / "old.nemo", CONFIGS[file.stem], state)
    assert torch.equal(load(tmp_path / "old.nemo").encode(wave()), load(file).encode(wave()))


def test_the_published_models_sizes():
    """examples/tts/conf/audio_codec/audio_codec_44100.yaml of NeMo, narrower."""
    target = "nemo.collections.tts.modules.audio_codec_modules."
    codec = NemoCodec({
        "sample_rate": 44_100, "samples_per_frame": 512,
        "audio_encoder": {
            "_target_": f"{target}HiFiGANEncoder", "down_sample_rates": [2, 4, 8, 8], "encoded_dim": 32,
            "base_channels": 2,
        },
        "audio_decoder": {
            "_target_": f"{target}HiFiGANDecoder", "up_sample_rates": [8, 8, 4, 2], "input_dim": 32,
            "base_channels": 32, "activation": "half_snake", "output_activation": "clamp",
        },
        "vector_quantizer": {
            "_target_": f"{target}GroupFiniteScalarQuantizer", "num_groups": 8, "num_levels_per_group": [8, 5, 5, 5],
        },
    })  # fmt: skip
    assert (codec.sample_rate, codec.levels, codec.codes, codec.residual) == (44_100, 8, 1000, False)
    assert codec.frame_rate == pytest.approx(86.13, abs=0.01)
    assert codec.stream().look_ahead / codec.frame_rate < 0.2
    books = codec.codebooks()
    assert len(books) == 8 and books[0].shape == (1000, 32)
    assert (torch.stack([book.abs().sum(0) > 0 for book in books]).sum(0) == 1).all(), "levels share columns"


def test_every_code_is_reached_and_stands_for_itself():
    scalars = GroupedScalars(2, [8, 5, 5, 5])
    every = torch.arange(1000).expand(1, 2, -1)
    z = scalars.decode(every)
    assert z.min() == -1 and z.max() <= 1 and len(z[0].T.unique(dim=0)) == 1000
    count = scalars.count.repeat(2, 1)
    offset, scale = torch.where(count % 2 == 0, 0.5, 0.0), (count - 1) / 2 * 0.999
    unbounded = ((z * (count // 2) + offset) / scale).clamp(-0.9999, 0.9999).atanh() - (offset / scale).tan()
    assert torch.equal(scalars.encode(unbounded), every)
    extreme = scalars.encode(torch.tensor([-1e3, 1e3]).expand(1, 8, 2))
    assert extreme.min() == 0 and extreme.max() == 999


def test_a_samples_frames_are_within_the_reach():
    torch.manual_seed(0)
    decoder = HiFiGANDecoder(4, [5, 4, 2], 8, resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[1, 2])
    z = torch.randn(1, 4, 60, requires_grad=True)
    decoder(z)[0, 0, 30 * 40 : 31 * 40].abs().sum().backward()
    touched = z.grad[0].abs().sum(0).nonzero()[:, 0]
    assert 30 - decoder.reach <= touched.min() and touched.max() <= 30 + decoder.reach
    assert touched.max() - touched.min() > decoder.reach, "the context is far greater than what is needed"


def test_a_pickle_in_the_file_does_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    write_nemo(tmp_path / "evil.nemo", CONFIGS["audio"], {"audio_encoder.x": Harm()})
    with pytest.raises(ValueError, match=r"evil.nemo is not a file of plain tensors"):
        load(tmp_path / "evil.nemo")
    assert not (tmp_path / "harm").exists()


def test_files_that_are_something_else_are_named(tmp_path):
    (tmp_path / "page.nemo").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"page.nemo is not a .nemo file"):
        load(tmp_path / "page.nemo")
    with tarfile.open(tmp_path / "empty.nemo", "w") as tar:
        tar.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO())
    with pytest.raises(ValueError, match=r"empty.nemo holds 0 files model_config.yaml"):
        load(tmp_path / "empty.nemo")
    with pytest.raises(FileNotFoundError, match=r"nothing.nemo does not exist"):
        load(tmp_path / "nothing.nemo")


@pytest.mark.parametrize("part, change, message", [
    ("audio_encoder", {"_target_": "nemo.SomethingNew"}, "audio_encoder is a SomethingNew; this loader knows HiFiGAN"),
    ("audio_decoder", {"_target_": "a.HiFiGANDecoder", "widht": 3}, "audio_decoder does not fit: .*widht"),
    ("audio_decoder", {"_target_": "a.HiFiGANDecoder", "input_dim": 9}, "takes 9 channels, vector_quantizer gives 12"),
    ("vector_quantizer", {"_target_": "nemo.ResidualVectorQuantizer"}, "vector_quantizer is a Residual"),
])  # fmt: skip
def test_other_networks_are_refused_by_name(part, change, message, tmp_path):
    config = CONFIGS["audio"] | {part: CONFIGS["audio"][part] | change}
    write_nemo(tmp_path / "other.nemo", config, checkpoint("audio"))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "other.nemo")


def test_offline_the_error_names_repository_file_and_remedy(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"audio-codec-44khz.nemo of nvidia/audio-codec-44khz.*codec.name: mel"):
        load_codec(CodecConfig(name="nemo"))


def test_the_hub_gives_the_repositorys_own_file(file, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: asked.append((repo, name)) or str(file))
    assert torch.equal(load("somebody/codec-9khz").encode(F.pad(wave(), (0, 7))), load(file).encode(wave()))
    assert asked == [("somebody/codec-9khz", "codec-9khz.nemo")]
