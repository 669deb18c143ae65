"""What holds for every codec: the protocol's shapes, determinism, batches, and a saved copy that is the same codec."""

from __future__ import annotations

import pytest
import torch

from tests.codecs import small
from vall_e.codecs.base import Codec, load_codec
from vall_e.preparation import CodecConfig

CODECS = {"mel": small.mel, "encodec": small.encodec, "dac": small.dac, "nemo": small.nemo}
ALL = CODECS | {"fsq": small.Fsq}


@pytest.fixture(params=ALL, scope="module")
def codec(request):
    return ALL[request.param]()


def speech(codec, batch: int, seconds: float, seed: int = 0) -> torch.Tensor:
    """Noise whose loudness moves like speech, float [B, 1, N]."""
    generator = torch.Generator().manual_seed(seed)
    length = int(seconds * codec.sample_rate)
    envelope = 0.3 * torch.sin(torch.arange(length) / codec.sample_rate * 9.0).abs() + 0.01
    return envelope * torch.randn(batch, 1, length, generator=generator).clamp(-3, 3)


def test_it_has_the_protocols_parts(codec):
    assert isinstance(codec, Codec)
    assert codec.residual is (codec.name not in ("fsq", "nemo")) and codec.levels >= 2
    assert codec.frame_rate == pytest.approx(codec.sample_rate / codec.hop)


@pytest.mark.parametrize("extra", [0, 1, -1])
def test_shapes_types_and_ranges(codec, extra):
    wav = torch.cat([speech(codec, 2, 0.5), torch.zeros(2, 1, codec.hop)], -1)
    frames = wav.shape[-1] // codec.hop
    wav = wav[..., : frames * codec.hop + extra]
    codes = codec.encode(wav)
    assert codes.dtype == torch.int64
    assert codes.shape == (2, codec.levels, -(-wav.shape[-1] // codec.hop))
    assert codes.min() >= 0 and codes.max() < codec.codes
    assert codes.unique().numel() > 4, "every frame has the same code: the test proves nothing"
    back = codec.decode(codes)
    assert back.dtype == torch.float32 and back.shape == (2, 1, codes.shape[-1] * codec.hop)
    assert 0 <= back.shape[-1] - wav.shape[-1] < codec.hop
    assert back.isfinite().all()


def test_it_is_deterministic_and_leaves_its_input_alone(codec):
    wav = speech(codec, 1, 0.4)
    kept = wav.clone()
    codes = codec.encode(wav)
    assert torch.equal(codes, codec.encode(wav)) and torch.equal(wav, kept)
    kept = codes.clone()
    assert torch.equal(codec.decode(codes), codec.decode(codes)) and torch.equal(codes, kept)


def test_a_clip_among_others_of_its_length_has_the_codes_it_has_alone(codec):
    wav = speech(codec, 5, 0.4)
    together = codec.encode(wav)
    for row in range(5):
        assert torch.equal(together[row], codec.encode(wav[row : row + 1])[0])


def test_a_row_decoded_in_a_batch_is_the_row_decoded_alone(codec):
    codes = codec.encode(speech(codec, 3, 0.4))
    together = codec.decode(codes)
    peak = max(1.0, float(together.abs().max()))
    torch.testing.assert_close(together[1:2], codec.decode(codes[1:2]), rtol=1e-4, atol=1e-5 * peak)


def test_fewer_levels_can_be_decoded_and_each_level_matters(codec):
    codes = codec.encode(speech(codec, 1, 0.4))
    whole = codec.decode(codes)
    for level in range(codec.levels):
        changed = codes.clone()
        changed[:, level] = (changed[:, level] + 1) % codec.codes
        assert not torch.equal(codec.decode(changed), whole)
    assert codec.decode(codes[:, :1]).shape == whole.shape


def test_codebooks_are_the_tables_that_decoding_uses(codec):
    books = codec.codebooks()
    assert len(books) == codec.levels
    assert all(book.shape == (codec.codes, books[0].shape[1]) and book.is_floating_point() for book in books)
    assert all(book.std(0).mean() > 0 for book in books)
    if not codec.residual:  # no level is lost in the sum
        own = torch.stack([book.abs().sum(0) > 0 for book in books])
        assert (own.sum(0) == 1).all() and all(len(book.unique(dim=0)) == codec.codes for book in books)


@pytest.mark.parametrize("name", CODECS)
def test_a_saved_codec_is_the_same_codec(name, tmp_path, monkeypatch):
    codec = CODECS[name]()
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("loading a saved codec used the network"))
    codec.save(tmp_path / "codec")
    assert sorted(p.name for p in (tmp_path / "codec").iterdir()) == ["config.json", "model.safetensors"]
    again = load_codec(CodecConfig(name=codec.name), tmp_path / "codec")
    for fact in ("name", "sample_rate", "frame_rate", "levels", "codes", "residual"):
        assert getattr(again, fact) == getattr(codec, fact)
    wav = speech(codec, 2, 0.5)
    codes = codec.encode(wav)
    assert torch.equal(codes, again.encode(wav))
    assert torch.equal(codec.decode(codes), again.decode(codes))
    again.save(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "codec" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("name", CODECS)
def test_a_folder_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="fit_codec"):
        load_codec(CodecConfig(name=name), tmp_path / "nothing")


@pytest.mark.parametrize("name, other", [("encodec", "dac"), ("dac", "encodec"), ("encodec", "mel")])
def test_a_folder_with_another_codec_is_refused(name, other, tmp_path):
    CODECS[other]().save(tmp_path)
    with pytest.raises(ValueError, match=rf"holds the codec '{other}', not '{name}'"):
        load_codec(CodecConfig(name=name), tmp_path)
