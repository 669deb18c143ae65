"""An utterance as the codec gets it: at one loudness and the codec's rate, in whole frames; and its codes.

The codes of a wave do not depend on its neighbours in a batch: waves of different lengths share one only when the codec
is ``padding_safe``.

Dimensions: N samples, L levels, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vall_e.audio import AudioError, level, load, resample
from vall_e.codecs.base import Codec
from vall_e.corpus.quality import Row, reject
from vall_e.preparation import EncodeConfig

STAGE = "encode"
MIN_SECONDS = 0.1
MIN_PEAK = 1e-5
CPU_BATCH_SECONDS = 10.0  # what a longer batch holds between two layers of a codec is beyond a processor's cache


class UnusableError(ValueError):
    """A recording that cannot be used; ``rule``, ``value`` and ``threshold`` are those of a reject."""

    def __init__(self, rule: str, value: str, threshold: str | None = None) -> None:
        super().__init__(f"{rule}: {value}")
        self.rule, self.value, self.threshold = rule, value, threshold

    def row(self, name: str) -> Row:
        """The reject (schema REJECTS) of what is called ``name``."""
        return reject(name, STAGE, self.rule, self.value, self.threshold)


@dataclass(frozen=True)
class Clip:
    """A waveform at the codec's rate, filled up to whole frames.

    Attributes:
        wav: float32 [N], N a multiple of the samples per frame.
        frames: T.
        seconds: before filling up.
    """

    row: dict[str, Any]
    wav: np.ndarray
    frames: int
    seconds: float


def read_sound(path: str, start: float = 0.0, end: float | None = None) -> tuple[np.ndarray, int]:
    """A recording, or a part of it in seconds, not silent: waveform float32 [N], rate in Hz. Raises UnusableError."""
    try:
        wav, rate = load(path, start=start, end=end)
    except AudioError as error:
        raise UnusableError("unreadable", error.reason) from None
    peak = float(np.abs(wav).max())
    if peak < MIN_PEAK:
        raise UnusableError("silent", f"peak {peak:.1e}", f"{MIN_PEAK:.0e}")
    return wav, rate


def read_voice(path: str, settings: EncodeConfig, start: float, end: float) -> tuple[np.ndarray, int]:
    """As ``read_sound``, brought to the loudness that is set."""
    wav, rate = read_sound(path, start, end)
    return level(wav, rate, settings), rate


def copies(row: dict[str, Any], settings: EncodeConfig) -> list[tuple[float, dict[str, Any]]]:
    """The utterance itself and, of a training utterance, its copies: (speed, row)."""
    out = []
    for speed in (1.0, *(settings.speeds if row["split"] == "train" else ())):
        suffix = "" if speed == 1.0 else f"@{speed:g}"
        copy = row | {"id": row["id"] + suffix, "speaker": row["speaker"] + suffix, "source": row["id"]}
        out.append((speed, copy))
    return out


def prepare(row: dict[str, Any], settings: EncodeConfig, codec: Codec) -> tuple[list[Clip], list[Row]]:
    """The clips of one utterance, its copies at other speeds among them, and the rejects (schema REJECTS)."""
    try:
        wav, rate = read_voice(row["path"], settings, row["start"], row["end"])
    except UnusableError as error:
        return [], [error.row(row["id"])]
    clips, rejects = [], []
    for speed, copy in copies(row, settings):
        played = resample(wav, round(rate * speed), codec.sample_rate)
        seconds = len(played) / codec.sample_rate
        if seconds < MIN_SECONDS:
            rejects.append(reject(copy["id"], STAGE, "too_short", f"{seconds:.3f} s", f"{MIN_SECONDS} s"))
            continue
        hop = _hop(codec)
        whole = np.pad(played, (0, -len(played) % hop))
        clips.append(Clip(copy, whole, len(whole) // hop, seconds))
    return clips, rejects


def encode_clips(codec: Codec, clips: Sequence[Clip], batch_seconds: float) -> list[dict[str, Any]]:
    """Rows of schema CODES, in the order of ``clips``."""
    names = ("id", "speaker", "language", "group", "split", "text", "phones", "source")
    codes = encode_waves(codec, [clip.wav for clip in clips], batch_seconds)
    return [
        {name: clip.row[name] for name in names}
        | {"frames": clip.frames, "levels": codec.levels, "seconds": clip.seconds, "codes": code.reshape(-1)}
        for clip, code in zip(clips, codes, strict=True)
    ]


def encode_waves(codec: Codec, waves: Sequence[np.ndarray], batch_seconds: float) -> list[np.ndarray]:
    """Codes int16 [L, T] of waves float32 [N] of whole frames, in their order.

    Args:
        batch_seconds: seconds of audio in one batch, padding included; on a processor at most CPU_BATCH_SECONDS.
    """
    if getattr(codec, "device", torch.device("cpu")).type == "cpu":
        batch_seconds = min(batch_seconds, CPU_BATCH_SECONDS)
    out: list[np.ndarray] = [np.zeros((0, 0), dtype=np.int16)] * len(waves)
    frames = [len(wav) // _hop(codec) for wav in waves]
    mixed = bool(getattr(codec, "padding_safe", False))
    for batch in batches(frames, int(batch_seconds * codec.frame_rate), mixed):
        longest = max(len(waves[i]) for i in batch)
        wav = torch.from_numpy(np.stack([np.pad(waves[i], (0, longest - len(waves[i]))) for i in batch]))
        codes = codec.encode(wav[:, None]).cpu().numpy().astype(np.int16)
        for i, code in zip(batch, codes, strict=True):
            out[i] = code[:, : frames[i]]
    return out


def batches(frames: Sequence[int], limit: int, mixed: bool) -> list[list[int]]:
    """Indices of clips, batched by length: frames times rows stays within ``limit`` unless one clip is longer.

    Args:
        frames: T of each clip.
        limit: frames in one batch, padding included.
        mixed: clips of different lengths may share a batch.
    """
    out: list[list[int]] = []
    for index in sorted(range(len(frames)), key=lambda i: (frames[i], i)):
        length = frames[index]
        last = out[-1] if out else []
        if last and (len(last) + 1) * length <= limit and (mixed or frames[last[0]] == length):
            last.append(index)
        else:
            out.append([index])
    return out


def _hop(codec: Codec) -> int:
    """Samples per frame."""
    return round(codec.sample_rate / codec.frame_rate)
