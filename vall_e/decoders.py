"""Recordings as blocks of samples: libsndfile where it can, FFmpeg (PyAV) for m4a, aac, mp4 and webm.

Dimensions: n samples of a block, C channels. A block is float32 [n, C], nominally in -1..1. Places are counted in
samples of one channel from the beginning. A file is taken for what its bytes are, whatever its name ends in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

EXTENSIONS = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".m4b", ".mp4", ".aac", ".webm", ".mka", ".aif", ".aiff",
)  # fmt: skip

# First bytes of recordings, those that nothing here decodes among them: WAV and its kin, AIFF, FLAC, Ogg, ID3,
# Matroska, MP4, CAF, AU, Wave64, AMR, WMA, WavPack, Monkey's Audio, SPHERE, frames of MPEG layers II and III and AAC.
_BEGINNINGS = re.compile(
    rb"(?:RIFF|RIFX|RF64)....WAVE|FORM....AIF[FC]|fLaC|OggS|ID3[\2-\4]|\x1aE\xdf\xa3|....ftyp(?:M4|mp4|iso|qt|3g|dash)"
    rb"|caff|\.snd|riff\x2e\x91\xcf\x11|#!AMR|0&\xb2u\x8ef\xcf\x11|wvpk|MAC |NIST_1A|\xff[\xe2-\xe5\xf0-\xf5\xf8-\xfd]",
    re.DOTALL,
)

_BLOCK = 1 << 18  # samples of all channels in one block of libsndfile
# What libsndfile reads well is not given to FFmpeg, which would take half of a damaged file for a whole one; playlists
# and the like, which name other files, are none of its business here.
_CONTAINERS = "mov,mp4,m4a,matroska,webm,aac"
_GUESSED = ("aac", "mp3", "flac")  # formats of FFmpeg whose length is a guess from the bit rate, or not said
_UNINDEXED = ("aac", "flac")  # that are decoded from their beginning
_NO_FORMAT = "Format not recognised"  # as libsndfile says it
_LEAD_BYTES = 4096  # of an mp3 behind its ID3 tags, in which the tag with its length begins
_PREROLL_SECONDS = 0.5  # decoded and thrown away before a place in the middle: codecs lean on what was before
_PREROLLED = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "OPUS")  # in libsndfile


class AudioError(ValueError):
    """A recording cannot be used. The message names file, reason and remedy.

    ``rule`` is a short name of the reason: missing, empty, unreadable, truncated or not_finite.
    """

    def __init__(self, path: str | Path, reason: str, remedy: str, rule: str = "unreadable") -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.path, self.reason, self.remedy, self.rule = str(path), reason, remedy, rule


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        frames: samples of one channel; None where the file does not say.
        coding: of the samples: PCM_16, FLOAT, VORBIS, aac and so on.
        tolerance: how many samples fewer than ``frames`` do not mean yet that the file was cut off.
        ffmpeg: formats that FFmpeg, which decodes the file, may take it for; empty where libsndfile decodes it.
    """

    path: Path
    sample_rate: int
    channels: int
    frames: int | None
    coding: str
    tolerance: int = 0
    ffmpeg: str = ""


def read_header(path: str | Path) -> Header:
    """Rate, channels and length of a recording, with at most two packets decoded.

    Raises:
        AudioError: there is no such file, or it is not a recording.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise AudioError(path, "no such file", "check the path", "missing")
    if not path.is_file():
        raise AudioError(path, "not a regular file", "give the path of a recording")
    with _readable(path):
        if path.stat().st_size == 0:
            raise AudioError(path, "the file is empty (0 bytes)", "copy the recording again", "empty")
        if _is_adts(path):
            return _ffmpeg_header(path, None)
    try:
        with soundfile.SoundFile(str(path)) as handle:
            rate, announced = handle.samplerate, handle.frames
            mp3 = handle.format in ("MP3", "MPEG")
            frames = announced if 0 <= announced < 2**62 else None
            # Of a FLAC that was written to a pipe nobody knows the length (RFC 9639, 8.2): libsndfile fails at its end.
            unknown = not _says_its_length(path) if mp3 else handle.format == "FLAC" and frames is None
            if not unknown:
                # Encoders differ in what they count in an mp3; elsewhere every sample fewer means a file cut off.
                tolerance = announced // 20 + 2400 if mp3 else 0
                return Header(path, rate, handle.channels, frames, handle.subtype, tolerance)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        reason = str(error).split(": ", 1)[-1].strip().rstrip(".")
        # Said of files that are there, and begin with no frame of MPEG.
        return _ffmpeg_header(path, _NO_FORMAT if reason.startswith("File does not exist") else reason)
    return _ffmpeg_header(path, None, "mp3" if mp3 else "flac")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the file system says of ``path`` as an AudioError."""
    try:
        yield
    except OSError as error:
        raise AudioError(path, f"cannot be read ({error.strerror})", "check its permissions and the disk") from None


def begins_like_a_recording(path: str | Path) -> bool:
    """By its first bytes, whatever its name; false for what is no file or cannot be opened."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as handle:
            return _BEGINNINGS.match(handle.read(12)) is not None
    except OSError:
        return False


def _is_adts(path: Path) -> bool:
    """A raw aac stream (ISO 13818-7, 6.2), which libsndfile takes for a damaged mp3: the same sync, but layer 0."""
    with path.open("rb") as handle:
        head = handle.read(2)
    return len(head) == 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _says_its_length(path: Path) -> bool:
    """An mp3 begins with a frame (Xing, Info) that counts the others. Without it libsndfile estimates the length from
    the first frames and the file's bytes, pictures included, and reads no further than that (its issues 876, 1001);
    so it does of files put one behind another, of which the first one's frame tells.
    """
    with path.open("rb") as handle:
        while (head := handle.read(10))[:3] == b"ID3" and len(head) == 10:
            size = sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
            handle.seek(size + 10 * bool(head[5] & 16), os.SEEK_CUR)  # a footer repeats the header
        lead = head + handle.read(_LEAD_BYTES)
        left = path.stat().st_size - handle.tell() + len(lead)
    tag = re.search(rb"(?:Xing|Info)\0\0\0(.)(.{4})(.{4})", lead, re.DOTALL)
    if tag is None or not tag[1][0] & 1:
        return False
    counted = int.from_bytes(tag[3]) if tag[1][0] & 2 else left
    return left - counted <= counted // 16


def channel(header: Header, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """The mean of a recording's channels, block by block: float32 [n]. Otherwise as ``blocks``."""
    for block in blocks(header, start, stop):
        yield mixed(block)


def mixed(block: np.ndarray) -> np.ndarray:
    """float32 [n, C] → the mean of its channels [n]."""
    return np.ascontiguousarray(block[:, 0]) if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def blocks(header: Header, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """A recording block by block: float32 [n, C], n > 0, finite; nothing else is in memory.

    A part has the very samples of a run from the beginning, but for what rounding and noise substitution make of them
    in lossy formats. Vorbis and raw aac, which have no index to go by, are decoded from their beginning.

    Args:
        start, stop: places in samples; without ``stop`` up to the end.

    Raises:
        AudioError: the file is damaged, cut off, or holds NaN or infinite samples.
    """
    with _readable(header.path):
        missing = _missing_wav_bytes(header.path)
    if missing:
        reason = f"cut off: {missing} bytes fewer than its header says"
        raise AudioError(header.path, reason, "copy the recording again", "truncated")
    done = start
    for block in (_ffmpeg_blocks if header.ffmpeg else _sndfile_blocks)(header, start, stop):
        if not np.isfinite(block).all():
            place = (done + int(np.argmin(np.isfinite(block).all(axis=1)))) / header.sample_rate
            reason = f"samples are NaN or infinite, the first at {place:.3f} s ({header.coding})"
            raise AudioError(header.path, reason, "export it again as 16-bit PCM", "not_finite")
        done += len(block)
        yield block
    wanted = header.frames if stop is None or header.frames is None else min(stop, header.frames)
    if wanted is not None and done + header.tolerance < wanted:
        reason = f"cut off: {done} of {wanted} samples"
        raise AudioError(header.path, reason, "copy the recording again", "truncated")


def _damaged(path: Path, error: Exception) -> AudioError:
    reason = f"decoding failed ({str(error).strip(' .')})"
    return AudioError(path, reason, "the file is damaged: copy or record it again")


def _sndfile_blocks(header: Header, start: int, stop: int | None) -> Iterator[np.ndarray]:
    size = max(1, _BLOCK // header.channels)
    try:
        with soundfile.SoundFile(str(header.path)) as handle:
            if start >= (handle.frames if header.frames is not None else start + 1):
                return
            place = _seek(handle, start)
            while stop is None or place < stop:
                wanted = size if stop is None else min(size, stop - place)
                block = handle.read(wanted, dtype="float32", always_2d=True)
                if place + len(block) > start:
                    yield block[max(0, start - place) :]
                if len(block) < wanted:
                    return
                place += len(block)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise _damaged(header.path, error) from None


def _seek(handle: soundfile.SoundFile, start: int) -> int:
    """Go to the last place at or before ``start`` from which decoding gives the very samples; returns it.

    Vorbis is decoded from the beginning: libsndfile goes to places beside the one asked for (its issue 885).
    """
    place = start
    if handle.subtype in _PREROLLED:
        place = max(0, start - int(_PREROLL_SECONDS * handle.samplerate))
    elif handle.subtype == "VORBIS":
        place = 0
    if place:
        handle.seek(place)
    return place


def _missing_wav_bytes(path: Path) -> int:
    """Bytes that a RIFF file lacks at its end by its own data chunk, 0 where it is whole or something else.

    libsndfile silently shortens a WAV whose data chunk reaches beyond the file. Writers that stream
    leave 0 or 2^32 - 1 as the length, which means "until the end".
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        if handle.read(4) != b"RIFF":
            return 0
        handle.seek(12)
        while len(head := handle.read(8)) == 8:
            length = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                end = handle.tell() + length
                streamed = length in (0, 0x7FFFFFFF, 0x80000000) or length >= 0xFFFFFF00
                return 0 if streamed else max(0, end - size)
            handle.seek(length + length % 2, os.SEEK_CUR)
    return 0


def _container(path: Path, formats: str) -> InputContainer:
    import av

    return av.open(f"file:{path}", options={"format_whitelist": formats, "protocol_whitelist": "file"})


def _ffmpeg_header(path: Path, reason: str | None, formats: str = _CONTAINERS) -> Header:
    """As ``read_header``; ``reason`` is why libsndfile could not read it, None where it was not asked to."""
    import av

    try:
        with _container(path, formats) as container:
            if not container.streams.audio:
                raise AudioError(path, "has pictures but no sound", "remove the file, or give its sound")
            stream = container.streams.audio[0]
            first = next(container.decode(stream), None)
            if first is None:
                raise AudioError(path, "the recording has no samples", "record it again, or remove the file", "empty")
            seconds = None
            if container.format.name not in _GUESSED:
                seconds = stream.duration * stream.time_base if stream.duration else container.duration
                seconds = seconds if stream.duration or seconds is None else seconds / av.time_base
            rate = first.sample_rate
            frames = None if seconds is None else round(seconds * rate)
            coding = stream.codec_context.name
            return Header(path, rate, first.layout.nb_channels, frames, coding, rate // 10, formats)
    except (av.FFmpegError, UnicodeError) as error:
        remedy = "give wav, flac, ogg, opus, mp3 or m4a, or convert it with ffmpeg"
        reason = reason or getattr(error, "strerror", _NO_FORMAT)
        raise AudioError(path, f"not a readable recording ({reason})", remedy) from None


def _ffmpeg_blocks(header: Header, start: int, stop: int | None) -> Iterator[np.ndarray]:
    import av

    # The padding of the last packet lies behind what the container says is the end.
    ends = [place for place in (stop, header.frames) if place is not None]
    stop = min(ends, default=None)
    try:
        with _container(header.path, header.ffmpeg) as container:
            stream = container.streams.audio[0]
            numbered = container.format.name == "flac"  # its frames know their place; damaged ones FFmpeg leaves out
            resampler = None
            for place, frame in _frames(container, stream, start, header.sample_rate):
                if numbered and (frame.pts is None or frame.pts * stream.time_base * header.sample_rate != place):
                    raise _damaged(header.path, ValueError(f"a frame is missing at {place / header.sample_rate:.2f} s"))
                resampler = resampler or av.AudioResampler("fltp", frame.layout, header.sample_rate)
                first, last = max(0, start - place), frame.samples if stop is None else stop - place
                if last <= 0:
                    return
                frame.pts = None  # which a resampler would want to be even
                data = np.concatenate([part.to_ndarray() for part in resampler.resample(frame)], axis=1)
                if first < min(last, data.shape[1]):
                    yield data[:, first:last].T
    except av.FFmpegError as error:
        raise _damaged(header.path, error) from None


def _frames(container: InputContainer, stream: AudioStream, start: int, rate: int) -> Iterator[tuple[int, AudioFrame]]:
    """Decoded frames from one at or before ``start`` on, each with its place."""
    frames = container.decode(stream)
    head = list(islice(frames, 2))
    place, begin = 0, start - int(_PREROLL_SECONDS * rate)
    if len(head) == 2 and container.format.name not in _UNINDEXED and begin > sum(frame.samples for frame in head):
        # The first packet may be shortened; behind it packets of one size lie on a grid, which is finer than the
        # clock of some containers (1 ms in webm).
        offset, grid = head[0].samples, head[1]
        ticks = int((begin - offset) / rate / stream.time_base)
        container.seek(grid.pts + ticks, stream=stream)
        after = container.decode(stream)
        next(after, None)  # begins from nothing
        if (anchor := next(after, None)) is not None and anchor.pts is not None:
            packets = (anchor.pts - grid.pts) * stream.time_base * rate / grid.samples
            there = offset + round(packets) * grid.samples
            if there <= start:
                place, head, frames = there, [anchor], after
        if frames is not after:
            container.seek(0)
            head, frames = [], container.decode(stream)
    for part in (head, frames):
        for frame in part:
            yield place, frame
            place += frame.samples
