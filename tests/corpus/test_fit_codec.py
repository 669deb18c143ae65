"""The codec of a voice, taken over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.sounds import chirp, write
from tests.training.test_run import CODEC, params
from vall_e.codecs.mel import MelCodec
from vall_e.config import Params
from vall_e.corpus.fit_codec import fit_codec
from vall_e.corpus.schema import UTTERANCES, write_table
from vall_e.models.checkpoint import same_codec


def _with(**codec: object) -> Params:
    settings = params()
    return Params.model_validate(settings.model_dump() | {"codec": settings.codec.model_dump() | codec})


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MelCodec(CODEC).save(tmp_path / "voice/codec")
    return tmp_path / "voice"


def test_a_voices_codec_is_taken_as_it_is(voice: Path, tmp_path: Path) -> None:
    """No recording is needed: nothing is fitted."""
    figures = fit_codec(_with(weights=str(voice / "codec")), tmp_path / "none", tmp_path / "out", progress=False)
    assert same_codec(voice, tmp_path / "out")
    assert (figures["levels"], figures["codes"], figures["frame_rate"]) == (CODEC.levels, CODEC.codes, 50.0)
    wav = torch.randn(1, 1, 1600, generator=torch.Generator().manual_seed(1))
    assert torch.equal(MelCodec.load(tmp_path / "out").encode(wav), MelCodec.load(voice / "codec").encode(wav))


def test_other_sizes_and_other_folders_are_refused(voice: Path, tmp_path: Path) -> None:
    mel = CODEC.model_dump() | {"hop": 80}
    with pytest.raises(ValueError, match=r"codec\.mel\.hop is 80 and that of .*codec 160: write its values"):
        fit_codec(_with(weights=str(voice / "codec"), mel=mel), tmp_path / "none", tmp_path / "out", progress=False)
    with pytest.raises(FileNotFoundError, match=r"codec\.weights: .* is not the folder of a fitted codec"):
        fit_codec(_with(weights=str(voice)), tmp_path / "none", tmp_path / "out", progress=False)


def test_a_recording_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    rows = [
        {
            "id": name, "recording": name, "path": write(tmp_path / name, chirp(1.0, CODEC.sample_rate)).as_posix(),
            "start": 0.0, "end": 1.0, "group": None, "speaker": "s", "text": name, "origin": "given",
            "language": "en-us", "split": "train", "seconds": 1.0, "sample_rate": CODEC.sample_rate, "channels": 1,
            "digest": "0",
        }
        for name in ("a.wav", "b.wav", "c.wav")
    ]  # fmt: skip
    write_table(rows, UTTERANCES, tmp_path / "manifest.parquet")
    (tmp_path / "b.wav").unlink()
    config = _with(mel=CODEC.model_dump() | {"steps": 1})
    with pytest.warns(UserWarning, match=r"1 recordings cannot be read, the first .*b\.wav: no such file"):
        figures = fit_codec(config, tmp_path / "manifest.parquet", tmp_path / "out", progress=False)
    assert (figures["kept"], figures["unread"]) == (2, 1)
    for name in ("a.wav", "c.wav"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="3 recordings cannot be read"):
        fit_codec(config, tmp_path / "manifest.parquet", tmp_path / "out", progress=False)
