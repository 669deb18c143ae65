"""The bundled codec: it learns, it is deterministic, it goes to disk and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vall_e.codecs.fit import fit_mel_codec
from vall_e.codecs.mel import MelCodec
from vall_e.codecs.quantize import ResidualVQ
from vall_e.preparation import MelCodecConfig

TINY = MelCodecConfig(
    sample_rate=8000,
    n_fft=256,
    hop=80,
    n_mels=20,
    codes=32,
    code_dim=8,
    width=24,
    steps=60,
    batch_size=8,
    segment_frames=24,
)


def _tones(count: int = 12) -> list[np.ndarray]:
    rng, time = np.random.default_rng(0), np.arange(4000) / 8000
    return [(0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * time)).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def codec() -> MelCodec:
    return fit_mel_codec(TINY, _tones())[0]


def _distance(codec: MelCodec, a: torch.Tensor, b: torch.Tensor) -> float:
    return float((codec.log_mel(codec.magnitude(a)) - codec.log_mel(codec.magnitude(b))).abs().mean())


def test_fitting_brings_the_copy_nearer_and_more_levels_still_nearer(codec: MelCodec) -> None:
    wav = torch.from_numpy(np.stack(_tones(4)))[:, None]
    codes = codec.encode(wav)
    assert codes.shape == (4, 2, 50)
    untrained = MelCodec(TINY).eval()
    untrained.quantizer.tables.normal_(generator=torch.Generator().manual_seed(0))
    one, two = (_distance(codec, codec.decode(codes[:, :levels]), wav) for levels in (1, 2))
    assert two < one
    assert two < 0.7 * _distance(codec, untrained.decode(untrained.encode(wav)), wav)


def test_same_seed_same_codec(codec: MelCodec) -> None:
    again = fit_mel_codec(TINY, _tones())[0]
    assert all(torch.equal(a, b) for a, b in zip(codec.state_dict().values(), again.state_dict().values(), strict=True))


def test_save_and_load(codec: MelCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    again = MelCodec.load(tmp_path)
    wav = torch.from_numpy(_tones(1)[0])[None, None]
    assert torch.equal(codec.encode(wav), again.encode(wav))
    assert torch.equal(codec.decode(codec.encode(wav)), again.decode(again.encode(wav)))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="fit_codec"):
        MelCodec.load(tmp_path)


def test_griffin_lim_comes_nearer_to_the_magnitudes_with_every_round() -> None:
    wav = torch.from_numpy(np.stack(_tones(2)))[:, None]
    errors = []
    for rounds in (1, 8, 64):
        codec = MelCodec(TINY.model_copy(update={"griffin_lim_iters": rounds})).eval()
        magnitude = codec.magnitude(wav)
        errors.append(float((codec.magnitude(codec.griffin_lim(magnitude)) - magnitude).norm() / magnitude.norm()))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.2


def test_phases_are_found_between_windows_that_overlap() -> None:
    """One spectrum a frame of 5/8 of a window is too few; a frame of two finer ones gives the wave back."""
    wav = torch.from_numpy(np.stack(_tones(4)))[:, None]
    errors = []
    for subframes in (1, 2, 4):
        codec = MelCodec(TINY.model_copy(update={"hop": 160, "subframes": subframes})).eval()
        magnitude, whole = codec.magnitude(wav), MelCodec(TINY).eval()
        assert magnitude.shape[-1] == 25 * subframes
        want, got = (whole.magnitude(x[..., 400:3600]) for x in (wav, codec.griffin_lim(magnitude)))
        errors.append(float((got - want).norm() / want.norm()))
    assert errors[2] < errors[1] < 0.75 * errors[0]


def test_a_frame_is_made_of_the_spectra_of_its_own_time_and_becomes_them() -> None:
    codec = MelCodec(TINY.model_copy(update={"subframes": 4})).eval()
    codec.encoder = codec.decoder = torch.nn.Identity()
    spectra = torch.arange(24.0) + 100 * torch.arange(20.0)[:, None]
    frames = codec.analyse(spectra[None])
    assert frames.shape == (1, 80, 6)
    assert [sorted({int(x) % 100 for x in frame}) for frame in frames[0].T] == [
        list(range(4 * t, 4 * t + 4)) for t in range(6)
    ]
    assert torch.equal(codec.synthesise(frames), spectra[None])


def test_a_step_of_a_fraction_of_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"codec\.mel\.hop: 81 samples are not 2 equal steps"):
        MelCodecConfig(**TINY.model_dump() | {"hop": 81})


def test_a_codec_from_before_there_were_subframes_is_read_as_it_was(tmp_path: Path) -> None:
    older = MelCodec(TINY.model_copy(update={"subframes": 1})).eval()
    older.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["mel"].pop("subframes") == 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    codes = torch.randint(TINY.codes, (1, 2, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(MelCodec.load(tmp_path).decode(codes), older.decode(codes))


def test_silence_is_silence(codec: MelCodec) -> None:
    magnitude = codec.magnitude(torch.zeros(1, 1, 800))
    assert torch.isfinite(codec.log_mel(magnitude)).all()
    assert codec.griffin_lim((magnitude.square() - magnitude.min() ** 2).clamp(min=0).sqrt()).abs().max() < 1e-3


def test_each_level_quantises_what_the_levels_before_left_over() -> None:
    generator = torch.Generator().manual_seed(0)
    vq = ResidualVQ(2, 4, 3)
    vq.tables.normal_(generator=generator)
    z = torch.randn(2, 3, 5, generator=generator)
    codes = vq.encode(z)
    rest = z
    for level in range(2):
        distance = (rest[:, None] - vq.tables[level][None, :, :, None]).square().sum(2)
        assert torch.equal(codes[:, level], distance.argmin(1))
        rest = rest - vq.tables[level][codes[:, level]].transpose(1, 2)
    torch.testing.assert_close(vq.decode(codes), z - rest)


def test_dead_codes_come_back_to_life() -> None:
    generator = torch.Generator().manual_seed(0)
    vq = ResidualVQ(1, 8, 2)
    z = torch.randn(4, 2, 50, generator=generator)
    keep = torch.ones(4, dtype=torch.int64)
    vq(z, keep, generator)
    vq.tables[0, 0] = 1e3  # nothing will choose it
    vq.sums[0, 0] = 1e3 * vq.usage[0, 0]
    for _ in range(200):
        vq(z, keep, generator)
    assert vq.tables[0, 0].abs().max() < 10
