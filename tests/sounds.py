"""Recordings of any format, made for tests.

N samples, C channels.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import soundfile

RATE = 16_000
AAC, OPUS, ALAC = "aac", "libopus", "alac"


def chirp(seconds: float, rate: int = RATE, gain: float = 0.3) -> np.ndarray:
    """A tone that rises and is never the same twice, float32 [N]: where a part of it came from can be heard."""
    at = np.arange(int(seconds * rate)) / rate
    return (gain * np.sin(2 * np.pi * (200 * at + 400 * at * at / max(seconds, 0.1)))).astype(np.float32)


def write(path: Path, wav: np.ndarray, rate: int = RATE, **kwargs: str) -> Path:
    """``wav`` [N] or [N, C] by libsndfile; ``kwargs`` are its subtype and format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(
        str(path), "w", rate, 1 if wav.ndim == 1 else wav.shape[1], kwargs.get("subtype"), format=kwargs.get("format")
    ) as handle:
        for start in range(0, len(wav), rate):  # libsndfile's Vorbis cannot be given much at once
            handle.write(wav[start : start + rate])
    return path


def forget_length(flac: bytearray) -> None:
    """Make of a FLAC what encoders write to a pipe: 0 samples, which says that nobody knows (RFC 9639, 8.2)."""
    flac[18:26] = (int.from_bytes(flac[18:26]) >> 36 << 36).to_bytes(8)


def write_ffmpeg(
    path: Path, wav: np.ndarray, codec: str, rate: int = RATE, bit_rate: int | None = None, **options: str
) -> Path:
    """``wav`` float [N] by FFmpeg, in the container that the name's ending says, at so many bits a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(wav[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        context = stream.codec_context
        fitted = av.AudioResampler(context.format.name, "mono", rate, frame_size=context.frame_size or 1024)
        for part in [*fitted.resample(frame), *fitted.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path
