"""A folder of hostile files beside good ones: no good recording is lost, nothing crashes, every bad one is explained.

What is odd but sound (8 bits, six channels, 192 kHz, another format's name) is used. Whether a sound is speech is for
later stages to say.
"""

from __future__ import annotations

import os
import socket
import struct
import unicodedata
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.sounds import AAC, OPUS, RATE, chirp, forget_length, write, write_ffmpeg
from vall_e.corpus.ingest import ingest
from vall_e.corpus.schema import MANIFEST, REJECTS, read_rows
from vall_e.preparation import IngestConfig

SOUND = chirp(0.6)
NOISE = (0.1 * np.random.default_rng(0).standard_normal(len(SOUND))).astype(np.float32)
LONG = "x" * 240  # with an ending as long as a file system takes


def raw(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def changed(path: Path, change: Callable[[bytearray], object], **kwargs: str) -> None:
    """A good recording with its bytes changed."""
    data = bytearray(write(path, SOUND, **kwargs).read_bytes())
    change(data)
    path.write_bytes(data)


def with_text(path: Path, text: bytes) -> None:
    write(path, SOUND)
    raw(path.with_suffix(".txt"), text)


def four_gigabytes(data: bytearray) -> None:
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xF0000000)


def no_channels(data: bytearray) -> None:
    data[22:24] = b"\0\0"


def all_channels(data: bytearray) -> None:
    data[22:24] = b"\xff\xff"


def no_rate(data: bytearray) -> None:
    data[24:28] = b"\0\0\0\0"


def renamed(made: Path, name: str) -> None:
    made.rename(made.with_name(name))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.wav", "nothing")


def silent_mp4(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def streamed_wav(path: Path) -> None:
    def without_length(data: bytearray) -> None:
        at = data.index(b"data") + 4
        data[at : at + 4] = b"\xff\xff\xff\xff"

    changed(path, without_length)


def with_chunks(path: Path) -> None:
    """A list of names of odd length before the samples, and rubbish behind them."""
    data = write(path, SOUND).read_bytes()
    at = data.index(b"data")
    path.write_bytes(data[:at] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + data[at:] + b"junk" * 9)


def mu_law(path: Path) -> None:
    write(path, SOUND, subtype="ULAW")


def one_bit_stereo(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 1, RATE, 0, "NONE", ""))
        file.writeframes(((np.repeat(SOUND, 2) * 127) + 128).astype(np.uint8).tobytes())


# Used: what they are called in the folder, and how they are made.
GOOD: dict[str, Callable[[Path], object]] = {
    "plain.wav": lambda p: write(p, SOUND),
    "flac.flac": lambda p: write(p, SOUND),
    "mp3.mp3": lambda p: write(p, SOUND),
    "vorbis.ogg": lambda p: write(p, SOUND),
    "opus.opus": lambda p: write(p, SOUND, format="OGG", subtype="OPUS"),
    "aac.m4a": lambda p: write_ffmpeg(p, SOUND, AAC),
    "raw.aac": lambda p: write_ffmpeg(p, SOUND, AAC),
    "opus.webm": lambda p: write_ffmpeg(p, SOUND, OPUS),
    "aac.mp4": lambda p: write_ffmpeg(p, SOUND, AAC),
    "8bit.wav": lambda p: write(p, SOUND, subtype="PCM_U8"),
    "24bit.wav": lambda p: write(p, SOUND, subtype="PCM_24"),
    "float64.wav": lambda p: write(p, SOUND, subtype="DOUBLE"),
    "mulaw.wav": mu_law,
    "alaw.wav": lambda p: write(p, SOUND, subtype="ALAW"),
    "adpcm.wav": lambda p: write(p, SOUND, subtype="IMA_ADPCM"),
    "rf64.wav": lambda p: write(p, SOUND, format="RF64"),
    "piped.flac": lambda p: changed(p, forget_length),
    "stereo-8bit.wav": one_bit_stereo,
    "six.wav": lambda p: write(p, np.stack([SOUND] * 6, axis=1)),
    "many.wav": lambda p: write(p, np.stack([SOUND] * 64, axis=1)),
    "one-of-two.wav": lambda p: write(p, np.stack([SOUND, 0 * SOUND], axis=1)),
    "side-by-side.wav": lambda p: write(p, np.stack([SOUND, -NOISE, -0.5 * SOUND], axis=1)),
    "one-of-many.wav": lambda p: write(p, np.stack([SOUND, *[0 * SOUND] * 31], axis=1)),
    "192khz.wav": lambda p: write(p, chirp(0.3, 192_000), 192_000),
    "8khz.wav": lambda p: write(p, chirp(0.3, 8000), 8000),
    "odd-rate.wav": lambda p: write(p, chirp(0.3, 12_345), 12_345),
    "wav-called.mp3": lambda p: renamed(write(p.with_suffix(".wav"), SOUND), p.name),
    "mp3-called.wav": lambda p: renamed(write(p.with_suffix(".mp3"), SOUND), p.name),
    "m4a-called.wav": lambda p: renamed(write_ffmpeg(p.with_suffix(".m4a"), SOUND, AAC), p.name),
    "flac-called.m4a": lambda p: renamed(write(p.with_suffix(".flac"), SOUND), p.name),
    "wav-called.dat": lambda p: renamed(write(p.with_suffix(".wav"), SOUND), p.name),
    "mp3-called": lambda p: renamed(write(p.with_suffix(".mp3"), SOUND), p.name),
    "m4a-called.bin": lambda p: renamed(write_ffmpeg(p.with_suffix(".m4a"), SOUND, AAC), p.name),
    "SHOUTED.WAV": lambda p: write(p, SOUND, format="WAV"),
    "streamed.wav": streamed_wav,
    "chunks.wav": with_chunks,
    "noise.wav": lambda p: write(p, NOISE),
    "tone.wav": lambda p: write(p, (0.3 * np.sin(np.arange(9600) / 5)).astype(np.float32)),
    "speech-on-dc.wav": lambda p: write(p, 0.5 * SOUND + 0.3),
    f"{LONG}.wav": lambda p: write(p, SOUND),
    "new\nline.wav": lambda p: write(p, SOUND),
    "quo\"te's.wav": lambda p: write(p, SOUND),
    "-rf.wav": lambda p: write(p, SOUND),
    "$(reboot);&|*?.wav": lambda p: write(p, SOUND),
    "\u202eleft.wav": lambda p: write(p, SOUND),
    unicodedata.normalize("NFC", "é.wav"): lambda p: write(p, SOUND),
    unicodedata.normalize("NFD", "é.wav"): lambda p: write(p, SOUND),
    "twin.wav": lambda p: write(p, SOUND),
    "TWIN.wav": lambda p: write(p, SOUND),
    "dots...wav": lambda p: write(p, SOUND),
    " spaces .wav": lambda p: write(p, SOUND),
    "ending.wav ": lambda p: renamed(write(p.with_name("other.wav"), SOUND), p.name),
    "\U0001f3a4.wav": lambda p: write(p, SOUND),
    "100%s%n.wav": lambda p: write(p, SOUND),
    "back\\slash.wav": lambda p: write(p, SOUND),
    "linked.wav": lambda p: p.symlink_to("plain.wav"),
    "text-utf16.wav": lambda p: with_text(p, "﻿hello there".encode("utf-16")),
    "text-controls.wav": lambda p: with_text(p, b"\xef\xbb\xbfhel\x1b[0mlo\x07 there \xc2\x9b"),
    "text-empty.wav": lambda p: with_text(p, b""),
    "text-mark.wav": lambda p: with_text(p, b"\xef\xbb\xbf"),
    "text-dangling.wav": lambda p: (write(p, SOUND), p.with_suffix(".txt").symlink_to("nowhere.txt")),
    "text-endless.wav": lambda p: (write(p, SOUND), p.with_suffix(".txt").symlink_to("/dev/zero")),
    "text-blank.wav": lambda p: with_text(p, b" \t\r\n\n"),
    "text-folder.wav": lambda p: (write(p, SOUND), p.with_suffix(".txt").mkdir()),
    "text-pipe.wav": lambda p: (write(p, SOUND), os.mkfifo(p.with_suffix(".txt"))),
}

# No recordings, and none is missed: no word of them.
IGNORED: dict[str, bytes] = {
    "README": b"Recorded in May.\n", "notes.md": b"# Notes\n", "list.csv": b"a,b\n", "cover.jpg": b"\xff\xd8\xff\xe0",
    "text.log": "one".encode("utf-16"), "photo.heic": b"\0\0\0\x18ftypheic", "vectors.npy": b"\x93NUMPY",
    "nothing.dat": b"",
}  # fmt: skip

# Rejected: the rule, and how they are made.
BAD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "empty.wav": ("empty", lambda p: raw(p, b"")),
    "empty.m4a": ("empty", lambda p: raw(p, b"")),
    "no-samples.wav": ("empty", lambda p: write(p, SOUND[:0])),
    "header-only.wav": ("unreadable", lambda p: changed(p, lambda data: data.__delitem__(slice(30, None)))),
    "half.wav": ("truncated", lambda p: changed(p, lambda data: data.__delitem__(slice(len(data) // 2, None)))),
    "half.flac": ("unreadable", lambda p: changed(p, lambda data: data.__delitem__(slice(len(data) // 2, None)))),
    "half.m4a": ("unreadable", lambda p: raw(p, write_ffmpeg(p, SOUND, AAC).read_bytes()[:2000])),
    "four-gigabytes.wav": ("truncated", lambda p: changed(p, four_gigabytes)),
    "no-channels.wav": ("unreadable", lambda p: changed(p, no_channels)),
    "no-rate.wav": ("unreadable", lambda p: changed(p, no_rate)),
    "all-channels.wav": ("unreadable", lambda p: changed(p, all_channels)),
    "half-piped.flac": (
        "unreadable",
        lambda p: changed(p, lambda d: (forget_length(d), d.__delitem__(slice(900, None)))),
    ),
    "text.wav": ("unreadable", lambda p: raw(p, b"notes of the session\n" * 99)),
    "tape.wma": ("unreadable", lambda p: raw(p, bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(99))),
    "text.mp3": ("unreadable", lambda p: raw(p, b"notes of the session\n" * 99)),
    "page.m4a": ("unreadable", lambda p: raw(p, b"<html><body>404 not found</body></html>")),
    "playlist.m4a": ("unreadable", lambda p: raw(p, b"#EXTM3U\n#EXTINF:9,\nplain.wav\n")),
    "list.m4a": ("unreadable", lambda p: raw(p, b"ffconcat version 1.0\nfile plain.wav\n")),
    "zip.wav": ("unreadable", zipped),
    "random.wav": ("unreadable", lambda p: raw(p, np.random.default_rng(1).bytes(5000))),
    "zeros.wav": ("unreadable", lambda p: raw(p, bytes(5000))),
    "pictures.mp4": ("unreadable", silent_mp4),
    "nan.wav": ("not_finite", lambda p: write(p, np.where(np.arange(9600) == 9000, np.nan, SOUND), subtype="FLOAT")),
    "inf.wav": ("not_finite", lambda p: write(p, np.where(np.arange(9600) == 5, -np.inf, SOUND), subtype="FLOAT")),
    "huge.wav": ("not_finite", lambda p: write(p, SOUND.astype(np.float64) * 1e300, subtype="DOUBLE")),
    "short.wav": ("too_short", lambda p: write(p, SOUND[:160])),
    "one-sample.wav": ("too_short", lambda p: write(p, SOUND[9:10])),
    "4khz.wav": ("low_sample_rate", lambda p: write(p, chirp(0.6, 4000), 4000)),
    "1hz.wav": ("low_sample_rate", lambda p: write(p, SOUND[:400], 1)),
    "silence.wav": ("silent", lambda p: write(p, 0 * SOUND)),
    "whisper.wav": ("silent", lambda p: write(p, SOUND * 1e-4, subtype="FLOAT")),
    "constant.wav": ("silent", lambda p: write(p, 0 * SOUND + 0.5)),
    "clipped.wav": ("clipped", lambda p: write(p, np.clip(SOUND * 30, -1, 1))),
    "antiphase.wav": ("cancelled", lambda p: write(p, np.stack([SOUND, -0.98 * SOUND], axis=1))),
    "one-clipped.wav": ("clipped", lambda p: write(p, np.stack([np.clip(SOUND * 30, -1, 1), 0.1 * SOUND], axis=1))),
    "integers.wav": ("clipped", lambda p: write(p, SOUND * 32768, subtype="FLOAT")),
    "dangling.wav": ("missing", lambda p: p.symlink_to("nowhere.wav")),
    "self.wav": ("missing", lambda p: p.symlink_to(p.name)),
    "pipe.wav": ("unreadable", os.mkfifo),
    "endless.wav": ("unreadable", lambda p: p.symlink_to("/dev/zero")),
    "folder.wav": ("not_a_file", Path.mkdir),
    "text-latin.wav": ("text_encoding", lambda p: with_text(p, "café".encode("latin-1"))),
    "text-nul.wav": ("text_encoding", lambda p: with_text(p, b"hel\0lo")),
    "text-unmarked.wav": ("text_encoding", lambda p: with_text(p, "hello".encode("utf-16-le"))),
    "text-torn.wav": ("text_encoding", lambda p: with_text(p, "﻿hello".encode("utf-16")[:-1])),
    "text-binary.wav": ("text_control_characters", lambda p: with_text(p, bytes(range(1, 32)) * 9)),
    "text-long.wav": ("text_too_long", lambda p: with_text(p, b"word " * 200_000)),
    "text-huge.wav": ("text_too_long", lambda p: with_text(p, b"word " * 2_000_000)),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Rows by file name, rejects by the name that stands in them, and the figures."""
    root = tmp_path_factory.mktemp("hostile") / "speaker"
    root.mkdir()
    for name, make in GOOD.items():
        make(root / name)
    for name, (_, make) in BAD.items():
        make(root / name)
    for name, data in IGNORED.items():
        raw(root / name, data)
    (root / "loop").symlink_to(root, target_is_directory=True)
    with socket.socket(socket.AF_UNIX) as listener:
        there = os.getcwd()
        os.chdir(root)  # the name of a socket is short
        try:
            listener.bind("socket.wav")
        finally:
            os.chdir(there)
    os.link(root / "plain.wav", os.fsencode(root) + b"/bad\xff.wav")
    config = IngestConfig(source="folder", path=str(root), layout="flat", max_reject_rate=0.9)
    figures = ingest(config, root.parent / "out", progress=False)
    rows = {Path(row["path"]).name: row for row in read_rows(root.parent / "out" / "manifest.parquet", MANIFEST)}
    rejects = read_rows(root.parent / "out" / "rejects.parquet", REJECTS)
    return rows, {row["id"]: row for row in rejects}, figures | {"rejects": rejects}


def test_sixty_files() -> None:
    assert len(BAD) + 3 + len(GOOD) > 60


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_a_good_recording_is_kept(result: Any, name: str) -> None:
    rows, rejects, _ = result
    assert name in rows, rejects.get(Path(name).stem)
    row = rows[name]
    assert 0.25 < row["seconds"] < 0.8
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in row["id"])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_explained(result: Any, name: str) -> None:
    rows, rejects, _ = result
    row = rejects.get(name) or rejects[Path(name).stem]
    assert name not in rows and row["rule"] == BAD[name][0], row
    assert row["value"] and (row["rule"] == "missing" or "not exist" not in row["value"])


def test_nothing_else_is_kept_or_rejected(result: Any) -> None:
    rows, _, figures = result
    assert set(rows) == set(GOOD)
    assert len({row["id"].casefold() for row in rows.values()}) == len(rows)
    assert len(figures["rejects"]) == len(BAD) + 2  # the socket, and the name that is no UTF-8
    assert {row["rule"] for row in figures["rejects"] if "socket" in row["id"]} == {"unreadable"}
    assert [row["id"] for row in figures["rejects"] if row["rule"] == "bad_file_name"] == ["bad\\udcff.wav"]


def test_texts_that_can_be_read_are(result: Any) -> None:
    rows, _, _ = result
    assert {name: rows[f"text-{name}.wav"]["text"] for name in ("utf16", "controls")} == {
        "utf16": "hello there", "controls": "hel[0mlo there",
    }  # fmt: skip
    none = ("empty", "mark", "dangling", "endless", "blank", "folder", "pipe")
    assert {rows[f"text-{name}.wav"]["text"] for name in none} == {None}


def test_a_file_or_folder_that_may_not_be_opened(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may open everything")
    for name in ("good.wav", "locked.wav", "closed/a.wav"):
        write(tmp_path / "in" / name, SOUND)
    (tmp_path / "in" / "locked.wav").chmod(0)
    (tmp_path / "in" / "closed").chmod(0)
    try:
        config = IngestConfig(source="folder", path=str(tmp_path / "in"), max_reject_rate=0.9)
        figures = ingest(config, tmp_path / "out", progress=False)
    finally:
        (tmp_path / "in" / "closed").chmod(0o755)
    assert figures["kept"] == 1 and figures["rejected"] == {"unreadable": 1, "unreadable_folder": 1}


def test_an_unreadable_file_and_folder_even_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above where permissions do not count: the calls fail as they would."""
    for name in ("good.wav", "locked.wav", "closed/a.wav"):
        write(tmp_path / "in" / name, SOUND)
    scandir, opened = os.scandir, soundfile.SoundFile

    def refused(folder: Any) -> Any:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    def locked(name: str, *args: Any) -> Any:
        if name.endswith("locked.wav"):
            raise PermissionError(13, "Permission denied", name)
        return opened(name, *args)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(soundfile, "SoundFile", locked)
    monkeypatch.setattr("vall_e.decoders._container", lambda path, _: locked(str(path)))
    config = IngestConfig(source="folder", path=str(tmp_path / "in"), max_reject_rate=0.9)
    figures = ingest(config, tmp_path / "out", progress=False)
    assert figures["kept"] == 1 and figures["rejected"] == {"unreadable": 1, "unreadable_folder": 1}
