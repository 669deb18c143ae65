"""EnCodec: the real package's model and wrapper agree, weights come from where they should, padding is harmless."""

from __future__ import annotations

import hashlib
import io

import pytest
import torch
from safetensors.torch import save_file

from tests.codecs import small
from tests.codecs.test_protocol import speech
from vall_e.codecs import encodec as module
from vall_e.codecs.encodec import EncodecCodec
from vall_e.codecs.weights import Published, write_codec
from vall_e.preparation import CodecConfig


@pytest.fixture(scope="module")
def codec():
    return small.encodec()


def test_the_codes_are_those_of_the_packages_own_encode_and_decode(tmp_path):
    """Meta's own model at its full size with random weights is the oracle, through a state dict in a file."""
    from encodec import EncodecModel

    torch.manual_seed(0)
    oracle = EncodecModel.encodec_model_24khz(pretrained=False)
    for layer in oracle.quantizer.vq.layers:
        layer._codebook.embed.normal_()
        layer._codebook.inited.fill_(1)
    oracle.set_target_bandwidth(6.0)
    torch.save(oracle.state_dict(), tmp_path / "weights.th")
    wav = speech(EncodecCodec, 1, 0.3)
    wav = wav[..., : wav.shape[-1] // 320 * 320]
    with torch.no_grad():
        frames = oracle.encode(wav)
        expected = oracle.decode(frames)

    codec = EncodecCodec.load(CodecConfig(name="encodec", weights=str(tmp_path / "weights.th"), bandwidth=6.0), None)
    assert (codec.levels, codec.codes, codec.sample_rate, codec.frame_rate) == (8, 1024, 24_000, 75.0)
    codes = codec.encode(wav)
    assert torch.equal(codes, frames[0][0])
    torch.testing.assert_close(codec.decode(codes), expected[..., : wav.shape[-1]])


@pytest.mark.parametrize("bandwidth, levels", [(1.5, 2), (3.0, 4), (6.0, 8), (12.0, 16), (24.0, 32)])
def test_levels_follow_the_bandwidth(bandwidth, levels):
    assert EncodecCodec(small.SMALL_ENCODEC | {"n_q": 32}, bandwidth).levels == levels


def test_more_levels_than_the_weights_have_are_refused():
    with pytest.raises(ValueError, match=r"bandwidth 6.0.*needs 8 levels.*have 4"):
        EncodecCodec(small.SMALL_ENCODEC, 6.0)


def test_silence_behind_a_clip_does_not_change_its_codes(codec):
    """What ``padding_safe`` promises to the encode stage, for whole frames and at least seven of them."""
    assert codec.padding_safe
    wav = speech(codec, 1, 1.0)
    for frames in (7, 8, 30, 60):
        clip = wav[..., : frames * 320]
        padded = torch.nn.functional.pad(clip, (0, 7 * 320))
        assert torch.equal(codec.encode(padded)[..., :frames], codec.encode(clip))


def test_one_folder_serves_any_bandwidth_as_weights_and_keeps_its_own_as_a_saved_codec(codec, tmp_path):
    codec.save(tmp_path)
    config = CodecConfig(name="encodec", weights=str(tmp_path), bandwidth=3.0)
    assert EncodecCodec.load(config, None).levels == 4
    assert EncodecCodec.load(config, tmp_path).levels == 2


@pytest.mark.parametrize("suffix", [".pt", ".th", ".safetensors"])
def test_weights_in_a_folder_beside_a_description(codec, tmp_path, suffix):
    state = {k: v.contiguous() for k, v in codec.model.state_dict().items()}
    path = tmp_path / f"model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    if suffix == ".safetensors":
        write_codec(tmp_path, {"architecture": small.SMALL_ENCODEC}, state)
        again = EncodecCodec.load(CodecConfig(name="encodec", weights=str(path), bandwidth=1.5), None)
        wav = speech(codec, 1, 0.2)
        assert torch.equal(again.encode(wav), codec.encode(wav))
    else:  # without a description they are taken for Meta's sizes, and are not
        with pytest.raises(ValueError, match="does not fit this codec"):
            EncodecCodec.load(CodecConfig(name="encodec", weights=str(path), bandwidth=1.5), None)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"weight": Harm()}, tmp_path / "evil.th")
    with pytest.raises(ValueError, match=r"evil.th is not a file of plain tensors.*save_file"):
        EncodecCodec.load(CodecConfig(name="encodec", weights=str(tmp_path / "evil.th")), None)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["weights.th", "weights.safetensors"])
def test_a_file_that_holds_something_else_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=name):
        EncodecCodec.load(CodecConfig(name="encodec", weights=str(tmp_path / name)), None)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.th does not exist"):
        EncodecCodec.load(CodecConfig(name="encodec", weights=str(tmp_path / "nothing.th")), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        EncodecCodec.load(CodecConfig(name="encodec", weights=str(tmp_path / "empty")), None)


def published_in(tmp_path, monkeypatch, content: bytes, sha256: str) -> Published:
    """Put ``content`` at a file: address, as the published weights."""
    source = tmp_path / "upstream.th"
    source.write_bytes(content)
    where = Published(source.as_uri(), tmp_path / "cache" / "encodec.th", sha256)
    monkeypatch.setattr(module, "published", lambda: where)
    return where


def test_published_weights_are_fetched_checked_and_cached(codec, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(module, "ARCHITECTURE", module.ARCHITECTURE | small.SMALL_ENCODEC)
    file = io.BytesIO()
    torch.save(codec.model.state_dict(), file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()
    where = published_in(tmp_path, monkeypatch, file.getvalue(), digest[:8])
    config = CodecConfig(name="encodec", bandwidth=1.5)
    wav = speech(codec, 1, 0.2)
    assert torch.equal(EncodecCodec.load(config, None).encode(wav), codec.encode(wav))
    assert [p.name for p in where.cache.parent.iterdir()] == ["encodec.th"]
    (tmp_path / "upstream.th").unlink()
    assert torch.equal(EncodecCodec.load(config, None).encode(wav), codec.encode(wav))


def test_a_download_that_is_not_the_published_file_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    where = published_in(tmp_path, monkeypatch, b"something else", "d7cc33bc")
    with pytest.raises(FileNotFoundError, match="does not begin with d7cc33bc"):
        EncodecCodec.load(CodecConfig(name="encodec"), None)
    assert not list(where.cache.parent.iterdir())


def test_offline_the_error_says_what_was_tried_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    where = published_in(tmp_path, monkeypatch, b"", "")
    with pytest.raises(FileNotFoundError) as error:
        EncodecCodec.load(CodecConfig(name="encodec"), None)
    for part in (str(where.cache), where.url, "HF_HUB_OFFLINE", "codec.weights", "codec.name: mel"):
        assert part in str(error.value)


def test_metas_file_is_where_torch_keeps_it():
    where = module.published()
    assert where.cache.name == "encodec_24khz-d7cc33bc.th" and where.sha256 == "d7cc33bc"
    assert where.url.endswith("/encodec_24khz-d7cc33bc.th")
