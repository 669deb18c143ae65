"""DAC: the wrapper agrees with the real package's model, reads its kind of file, and knows what padding does."""

from __future__ import annotations

import pytest
import torch

from tests.codecs import small
from tests.codecs.test_protocol import speech
from vall_e.codecs import dac as module
from vall_e.codecs.dac import ARCHITECTURES, DacCodec
from vall_e.preparation import CodecConfig


@pytest.fixture(scope="module")
def codec():
    return small.dac()


def test_the_codes_are_those_of_the_packages_own_encode_and_decode(codec):
    wav = speech(codec, 2, 0.3)[..., :-7]
    codes = codec.encode(wav)
    with torch.no_grad():
        result = codec.model(wav, codec.sample_rate)
    assert torch.equal(codes, result["codes"])
    decoded = codec.decode(codes)[..., : result["audio"].shape[-1]]
    torch.testing.assert_close(decoded, result["audio"], rtol=1e-3, atol=1e-4)


def test_codebook_vectors_sum_to_the_decoders_latent(codec):
    codes = codec.encode(speech(codec, 1, 0.2))
    total = sum(book[codes[0, level]] for level, book in enumerate(codec.codebooks()))
    torch.testing.assert_close(total.T[None], codec.model.quantizer.from_codes(codes)[0])


def test_a_file_of_the_package_itself_is_read_with_its_own_description(codec, tmp_path):
    path = tmp_path / "weights.pth"
    codec.model.save(str(path), package=False)
    again = DacCodec.load(CodecConfig(name="dac", dac_rate="44khz", weights=str(path)), None)
    assert (again.sample_rate, again.levels, again.codes, again.hop) == (16_000, 3, 32, 40)
    wav = speech(codec, 1, 0.3)
    assert torch.equal(again.encode(wav), codec.encode(wav))
    again.save(tmp_path / "saved")
    assert torch.equal(DacCodec.load(CodecConfig(name="dac"), tmp_path / "saved").encode(wav), codec.encode(wav))


def test_silence_behind_a_clip_does_change_its_last_codes(codec):
    """Why the encode stage groups clips of equal length for this codec."""
    assert not codec.padding_safe
    wav = speech(codec, 1, 0.2)
    frames = wav.shape[-1] // codec.hop
    padded = torch.nn.functional.pad(wav, (0, 20 * codec.hop))
    same = (codec.encode(padded)[..., :frames] == codec.encode(wav)).all(1)[0]
    assert not same[-1] and same[: frames // 2].all()


@pytest.mark.parametrize("rate, facts", [
    ("44khz", (44_100, 44_100 / 512, 9)), ("24khz", (24_000, 75.0, 32)), ("16khz", (16_000, 50.0, 12)),
])  # fmt: skip
def test_the_published_models_sizes(rate, facts):
    codec = DacCodec(ARCHITECTURES[rate] | {"decoder_dim": 32, "encoder_dim": 2})
    assert (codec.sample_rate, codec.frame_rate, codec.levels) == facts
    assert codec.codes == 1024
    assert rate in module.published(rate).cache.name and module.published(rate).url.endswith(".pth")


def test_offline_the_error_says_what_was_tried_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"codec 'dac' are not reachable.*weights_16khz.*codec.weights"):
        DacCodec.load(CodecConfig(name="dac", dac_rate="16khz"), None)


def test_weights_of_another_network_are_refused(codec, tmp_path):
    torch.save(codec.model.state_dict(), tmp_path / "state.pth")
    with pytest.raises(ValueError, match=r"state.pth does not fit this codec"):
        DacCodec.load(CodecConfig(name="dac", dac_rate="16khz", weights=str(tmp_path / "state.pth")), None)
    with pytest.raises(ValueError, match="does not fit: .*widht"):
        DacCodec({"widht": 3})
