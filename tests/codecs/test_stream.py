"""Codes that come piece by piece: in a row, the pieces are what decoding everything at once gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.codecs import small
from tests.codecs.test_protocol import speech
from vall_e.codecs.mel import MelCodec
from vall_e.preparation import MelCodecConfig

EXACT = {"encodec": small.encodec, "dac": small.dac, "nemo": small.nemo, "fsq": small.Fsq}
TOLERANCE = 1e-5  # of the greatest sample; convolutions of other lengths round otherwise


def streamed(codec, codes: Tensor, sizes: list[int], look_ahead: int | None = None) -> list[Tensor]:
    """The pieces [B, 1, n] of codes that come in pieces of ``sizes`` frames, again and again."""
    stream, pieces, at = codec.stream(look_ahead), [], 0
    while at < codes.shape[-1]:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(stream.push(codes[..., at : at + size], last=at + size >= codes.shape[-1]))
        at += size
    return pieces


def assert_equal(pieces: list[Tensor], whole: Tensor, tolerance: float = TOLERANCE) -> None:
    joined = torch.cat(pieces, -1)
    assert joined.shape == whole.shape
    assert (joined - whole).abs().max() < tolerance * whole.abs().max()


def learned_mel() -> MelCodec:
    """The bundled codec with all its rounds of Griffin-Lim, whose decoder gives the magnitudes of its noise."""
    torch.manual_seed(0)
    codec = MelCodec(MelCodecConfig(n_mels=20, levels=2, codes=32, code_dim=8, width=16)).eval()
    with torch.no_grad():
        codec.measure(codec.magnitude(speech(codec, 2, 2.0)))
        codec.quantizer.tables.copy_(torch.randn_like(codec.quantizer.tables))
    return codec


@pytest.mark.parametrize("name", [*EXACT, "mel"])
def test_an_iterator_over_pieces_of_codes_gives_what_a_stream_is_pushed(name):
    codec = learned_mel() if name == "mel" else EXACT[name]()
    codes = codec.encode(speech(codec, 2, 0.7))
    made = list(codec.decode_stream(codes.split(7, -1)))
    assert len(made) == len(codes.split(7, -1)) + 1
    assert_equal(made, torch.cat(streamed(codec, codes, [7]), -1))
    assert list(codec.decode_stream([])) == []


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("sizes", [[1], [3, 1, 8], [25], [1000]], ids=str)
def test_any_pieces_are_the_whole(name, sizes):
    codec = EXACT[name]()
    codes = codec.encode(speech(codec, 1, 0.9))[..., :70]
    whole = codec.decode(codes)
    assert whole.abs().max() > 1e-2
    assert_equal(streamed(codec, codes, sizes), whole)


def test_a_batch_and_a_stream_shorter_than_its_context():
    codec = small.encodec()
    codes = codec.encode(speech(codec, 2, 0.5))
    assert_equal(streamed(codec, codes, [5]), codec.decode(codes))
    for codec in (small.encodec(), small.dac(), small.nemo(), small.mel()):
        codes = codec.encode(speech(codec, 1, 0.5))[..., :3]
        assert_equal(streamed(codec, codes, [2]), codec.decode(codes))


def test_encodec_waits_for_nothing_but_its_first_reflection():
    codec = small.encodec()
    codes = codec.encode(speech(codec, 1, 0.5))
    lengths = [piece.shape[-1] // codec.hop for piece in streamed(codec, codes[..., :12], [1])]
    assert lengths == [0] * 6 + [7] + [1] * 5


def test_dac_waits_for_just_what_its_samples_are_made_from():
    codec = small.dac()
    codes = codec.encode(speech(codec, 1, 0.3))
    stream = codec.stream()
    reach = stream.look_ahead
    middle = codes.shape[-1] // 2
    other = codes.clone()
    other[..., middle:] = (other[..., middle:] + 1) % codec.codes
    changed = (codec.decode(codes) - codec.decode(other)).abs()[0, 0].unflatten(0, (-1, codec.hop)).amax(-1) > 0
    assert not changed[: middle - reach].any() and changed[middle - reach + 1 : middle].any()
    assert stream.push(codes[..., : reach + 2]).shape[-1] == 2 * codec.hop


@pytest.mark.parametrize("sizes", [[5], [7, 25], [25]], ids=str)
def test_the_bundled_codec_is_near_at_its_default_and_exact_with_all_its_context(sizes):
    codec = learned_mel()
    codes = codec.encode(speech(codec, 1, 2.0, seed=1))
    whole = codec.decode(codes)
    full = codec.stream(10**6).look_ahead
    assert whole.abs().max() < 1, "clipped: differences are hidden"
    assert_equal(streamed(codec, codes, sizes, look_ahead=full), whole, 1e-3)
    pieces = streamed(codec, codes, sizes)
    near = torch.cat(pieces, -1)
    level = float(10 * ((near - whole).square().mean() / whole.square().mean()).log10())
    assert level < -25, f"{level:.1f} dB"
    ends = torch.tensor([p.shape[-1] for p in pieces if p.shape[-1]]).cumsum(0)[:-1]
    steps = (near[0, 0, 1:] - near[0, 0, :-1]).abs()
    usual = (whole[0, 0, 1:] - whole[0, 0, :-1]).abs().quantile(0.999)
    assert steps[ends - 1].max() < usual
    assert codec.stream().look_ahead / codec.frame_rate < 0.35


def test_a_stream_cannot_look_back_in_front_of_it():
    with pytest.raises(ValueError, match="-1 frames ahead"):
        small.dac().stream(-1)
