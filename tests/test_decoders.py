"""Every format is read, and a part of a recording is what the whole has there, with no more than that in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.sounds import AAC, ALAC, OPUS, RATE, chirp, forget_length, write, write_ffmpeg
from vall_e.audio import AudioError, load, probe
from vall_e.decoders import channel, read_header

SECONDS = 6.0
CODECS = {"m4a": AAC, "mp4": AAC, "aac": AAC, "webm": OPUS, "mka": OPUS}
LOSSLESS = ("wav", "flac", "aiff", "alac.m4a")
LOSSY = ("ogg", "opus", "mp3", "m4a", "mp4", "aac", "webm", "mka")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, wav = tmp_path_factory.mktemp("formats"), chirp(SECONDS)
    out = {}
    for name in (*LOSSLESS, *LOSSY):
        path = folder / f"take.{name}"
        if name == "alac.m4a":
            out[name] = write_ffmpeg(path, wav, ALAC)
        elif name in CODECS:
            out[name] = write_ffmpeg(path, wav, CODECS[name])
        else:
            out[name] = write(path, wav, **({"format": "OGG", "subtype": "OPUS"} if name == "opus" else {}))
    return out


def best_shift(a: np.ndarray, b: np.ndarray, widest: int) -> tuple[int, float]:
    """By how many samples ``b`` lies behind ``a``, and the correlation there."""
    core = a[widest:-widest]
    scores = {
        shift: float(np.corrcoef(core, b[widest + shift : widest + shift + len(core)])[0, 1])
        for shift in range(-widest, widest + 1, 1)
    }
    best = max(scores, key=scores.__getitem__)
    return best, scores[best]


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_every_format_is_read_at_its_length(made: dict[str, Path], name: str) -> None:
    wav, rate = load(made[name], RATE)
    assert rate == RATE and wav.dtype == np.float32
    raw = 2048 if name == "aac" else 0  # its encoder's delay is written nowhere in a raw stream
    assert abs(len(wav) - SECONDS * RATE) <= 8 + raw
    original = chirp(SECONDS)
    middle = slice(2 * RATE, 3 * RATE)
    shift, score = best_shift(original[middle], wav[middle], raw + 8)
    assert score > 0.98 and abs(shift) <= max(raw, 1)
    info = probe(made[name])
    assert info.channels == 1 and info.seconds == pytest.approx(len(wav) / RATE, abs=0.03)


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_a_part_is_what_the_whole_has_there(made: dict[str, Path], name: str) -> None:
    whole, rate = load(made[name])
    rng = np.random.default_rng(0)
    spans = [(0.0, 0.5), (0.0, None), (0.01, 0.02), (5.5, None), (5.9, 99.0)]
    spans += [(start, start + rng.uniform(0.02, 2.0)) for start in rng.uniform(0, 5.5, 12)]
    for start, end in spans:
        part, _ = load(made[name], start=start, end=end)
        expected = whole[round(start * rate) : None if end is None else round(end * rate)]
        assert len(part) == len(expected), (start, end)
        tolerance = 0 if name in LOSSLESS else 1e-3
        assert np.abs(part - expected).max() <= tolerance, (start, end)


def test_a_part_can_be_resampled(made: dict[str, Path]) -> None:
    part, rate = load(made["flac"], 8000, 1.0, 2.5)
    assert rate == 8000 and len(part) == 12_000
    assert np.abs(part[200:-200] - chirp(SECONDS, 8000)[8200 : 20_000 - 200]).max() < 0.01


@pytest.mark.parametrize(("start", "end"), [(-1.0, None), (2.0, 2.0), (2.0, 1.0)])
def test_a_part_that_is_none_is_an_error(made: dict[str, Path], start: float, end: float | None) -> None:
    with pytest.raises(ValueError, match="begins at 0 s or later"):
        load(made["wav"], start=start, end=end)


@pytest.mark.parametrize("name", ["wav", "mp3", "m4a"])
def test_a_part_behind_the_end_is_an_error(made: dict[str, Path], name: str) -> None:
    with pytest.raises(AudioError, match="no samples from 99 s") as caught:
        load(made[name], start=99.0)
    assert caught.value.rule == "empty"


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_the_name_does_not_matter(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    for ending in ("wav", "mp3", "m4a"):
        path = tmp_path / f"http:a.{ending}"
        path.write_bytes(made[name].read_bytes())
        assert np.array_equal(load(path)[0], load(made[name])[0])


def test_stereo_in_m4a_becomes_one_channel(tmp_path: Path) -> None:
    import av

    wav = np.stack([chirp(1.0), np.zeros(RATE, np.float32)])
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream(ALAC, rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray((wav * 32767).astype(np.int16), format="s16p", layout="stereo")
        frame.sample_rate, frame.pts = RATE, 0
        for part in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(part)
    assert probe(tmp_path / "a.m4a").channels == 2
    assert np.abs(load(tmp_path / "a.m4a")[0] - wav[0] / 2).max() < 1e-3


def test_an_m4a_that_was_cut_off(tmp_path: Path) -> None:
    """With its index behind the samples nothing can be read; with it before them some of what was announced."""
    for name, options in (("behind", {}), ("before", {"movflags": "faststart"})):
        raw = write_ffmpeg(tmp_path / f"{name}.m4a", chirp(3.0), AAC, **options).read_bytes()
        (tmp_path / f"{name}.m4a").write_bytes(raw[: len(raw) * 2 // 3])
        with pytest.raises(AudioError) as caught:
            load(tmp_path / f"{name}.m4a")
        assert caught.value.rule in (("unreadable",) if name == "behind" else ("unreadable", "truncated"))


def _frame_bytes(data: bytes) -> int:
    """Of the first frame of an MPEG-2 layer III stream at 16 kHz."""
    kbps = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[data[2] >> 4]
    return 72_000 * kbps // 16_000 + (data[2] >> 1 & 1)


def _vbr(path: Path, wav: np.ndarray) -> bytes:
    """An mp3 of variable bit rate, which begins with the frame that counts the others."""
    soundfile.write(path, wav, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    return path.read_bytes()


@pytest.mark.parametrize("loud_first", [False, True])
@pytest.mark.parametrize("cover", [0, 500_000])
def test_an_mp3_without_its_length_is_read_to_its_end(tmp_path: Path, loud_first: bool, cover: int) -> None:
    """libsndfile takes its length from the first frames and the file's bytes: too long or too short."""
    noise = (0.3 * np.random.default_rng(0).standard_normal(8 * RATE)).astype(np.float32)
    parts = [noise, np.zeros_like(noise)]
    data = _vbr(tmp_path / "a.mp3", np.concatenate(parts if loud_first else parts[::-1]))
    picture = b"ID3\x04\0\0" + bytes(cover >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(cover)
    path = tmp_path / "bare.mp3"
    path.write_bytes((picture if cover else b"") + data[_frame_bytes(data) :])
    wav, rate = load(path)
    assert len(wav) / rate == pytest.approx(16.0, abs=0.2) and probe(path).seconds == len(wav) / rate
    part, _ = load(path, start=12.0, end=13.0)
    assert np.array_equal(part, wav[12 * rate : 13 * rate])


def test_mp3s_put_one_behind_another_are_read_to_the_end(tmp_path: Path) -> None:
    """The first one's frame counts its own frames only."""
    path = tmp_path / "two.mp3"
    path.write_bytes(2 * _vbr(tmp_path / "one.mp3", chirp(5.0)))
    assert probe(path).seconds == pytest.approx(10.0, abs=0.3)


def test_an_mp3_with_its_length_that_was_cut_off(tmp_path: Path) -> None:
    path, data = tmp_path / "cut.mp3", _vbr(tmp_path / "whole.mp3", chirp(5.0))
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(AudioError, match="cut off"):
        load(path)


def _without_length(path: Path, wav: np.ndarray) -> bytearray:
    data = bytearray(write(path, wav).read_bytes())
    forget_length(data)
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_without_its_length_is_read_to_its_end(tmp_path: Path, channels: int) -> None:
    wav = np.stack([chirp(SECONDS)] * channels, axis=1)
    whole, rate = load(write(tmp_path / "whole.flac", wav))
    path = tmp_path / "piped.flac"
    _without_length(path, wav)
    assert np.array_equal(load(path)[0], whole) and probe(path).seconds == SECONDS
    assert probe(path).channels == channels
    assert np.array_equal(load(path, start=3.1, end=4.5)[0], whole[round(3.1 * rate) : round(4.5 * rate)])


@pytest.mark.parametrize("change", [lambda data, at: data.__delitem__(slice(at, None)),
                                    lambda data, at: data.__setitem__(slice(at, at + 20), bytes(20))])  # fmt: skip
def test_a_damaged_flac_without_its_length_is_an_error(tmp_path: Path, change: Callable) -> None:
    path = tmp_path / "piped.flac"
    data = _without_length(path, chirp(SECONDS))
    change(data, len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(AudioError, match="damaged"):
        load(path)


def test_what_the_file_system_refuses_is_an_audio_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav", chirp(1.0))
    header = read_header(path)

    def failed(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "open", failed)
    for read in (lambda: read_header(path), lambda: next(channel(header))):
        with pytest.raises(AudioError, match="Input/output error") as caught:
            read()
        assert caught.value.rule == "unreadable"


def test_files_that_name_other_files_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "secret.wav", chirp(1.0))
    (tmp_path / "list.m4a").write_text("ffconcat version 1.0\nfile secret.wav\n")
    (tmp_path / "play.mp3").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.wav\n#EXT-X-ENDLIST\n")
    for name in ("list.m4a", "play.mp3"):
        with pytest.raises(AudioError, match="not a readable recording"):
            load(tmp_path / name)


def test_a_header_of_lies_costs_no_memory(tmp_path: Path) -> None:
    """A flac that announces 2^35 samples: 256 GB as float64."""
    path = write(tmp_path / "a.flac", chirp(0.5))
    raw = bytearray(path.read_bytes())
    raw[21] |= 0x0F  # the low four bits of byte 13 of STREAMINFO are the top of 36 bits of total samples
    path.write_bytes(raw)
    with pytest.raises(AudioError) as caught:
        load(path)
    assert caught.value.rule in ("truncated", "unreadable")


def test_minutes_are_never_in_memory_whole(tmp_path: Path) -> None:
    """Eight minutes at 16 kHz are 31 MB as float32; reading them block by block, or one second of them, takes a few."""
    wav = np.tile(chirp(10.0), 48)
    paths = [write(tmp_path / "long.flac", wav), write_ffmpeg(tmp_path / "long.m4a", wav, ALAC)]
    script = (
        "import resource, sys\nfrom vall_e.audio import load\nfrom vall_e.decoders import channel, read_header\n"
        "load(sys.argv[1], start=0.0, end=1.0)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "assert len(load(sys.argv[1], start=400.0, end=401.0)[0]) == 16000\n"
        "assert sum(map(len, channel(read_header(sys.argv[1])))) == 480 * 16000\n"
        "print(peak() - before)"
    )
    for path in paths:
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 10_000, path  # kB


def test_blocks_are_the_mean_of_the_channels(tmp_path: Path) -> None:
    wav = np.random.default_rng(1).uniform(-0.5, 0.5, (200_000, 6)).astype(np.float32)
    path = write(tmp_path / "six.wav", wav, subtype="FLOAT")
    parts = list(channel(read_header(path)))
    assert len(parts) > 1
    assert np.allclose(np.concatenate(parts), wav.mean(axis=1), atol=1e-7)
