"""What is asked of a voice, and what it gives back.

Dimensions: N samples, C channels, L levels, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vall_e.audio import load, resample, save_wav

MIN_REFERENCE_SECONDS = 0.2
MIN_REFERENCE_PEAK = 1e-3
SLOWEST, FASTEST = 0.25, 4.0  # of a voice's own pace
PCM = {np.dtype(np.int16): (0, 2.0**15), np.dtype(np.int32): (0, 2.0**31), np.dtype(np.uint8): (128, 2.0**7)}  # 0, full

Reference = str | Path | tuple[np.ndarray, int]


class SpeechError(ValueError):
    """A request that cannot be spoken: nothing to say, or a reference that holds no voice."""


@dataclass(frozen=True)
class Request:
    """Something to say.

    Attributes:
        text: of any length, in the voice's language; ignored where ``phones`` are given.
        prompt: samples at the voice's rate (see ``one_channel``), the speaker to imitate; None for a voice of the
            model's own.
        prompt_text: what the prompt says. With it and ``continue_prompt`` the model goes on from the prompt
            (VALL-E's continual mode, 2301.02111, section 4.3) instead of only imitating its voice.
        seed: of everything drawn for this request; the same in any batch.
        language: espeak-ng language; None takes the voice's own.
        phones: instead of text.
        continue_prompt: see ``prompt_text``.
        duration: seconds that the speech is to last, pauses between segments included; None lets the voice decide.
        speed: how fast to speak, 1 for the voice's own pace; 2 halves the time, but for the pauses between segments.
    """

    text: str = ""
    prompt: np.ndarray | None = None
    prompt_text: str | None = None
    seed: int = 0
    language: str | None = None
    phones: Sequence[str] | None = None
    continue_prompt: bool = False
    duration: float | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.duration is not None and not 0 < self.duration < float("inf"):
            raise SpeechError(f"a duration is seconds above 0, not {self.duration}")
        if not SLOWEST <= self.speed <= FASTEST:
            raise SpeechError(f"speed is a factor between {SLOWEST:g} and {FASTEST:g}, not {self.speed:g}")
        if self.duration is not None and self.speed != 1:
            raise SpeechError("duration and speed both say how long the speech lasts: give one of them")


@dataclass(frozen=True)
class Segment:
    """A part of the text that was spoken at once.

    Attributes:
        text: as it was written.
        start, end: where its sound is in the speech, in seconds.
        finished: the voice stopped by itself, and no check says that some of the text is missing.
    """

    text: str
    start: float
    end: float
    finished: bool


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds; a request's share of its batch.

    Attributes:
        prepare: text to phones, reference to codes.
        prefill: until the first frame was drawn; 0 where a kind draws all frames at once.
        decode: the rest of drawing, ranking and checking; retries included.
        codec: codes to sound.
        tokens_per_second: codes of the speech (frames times levels) over prefill and decode.
    """

    prepare: float
    prefill: float
    decode: float
    codec: float
    tokens_per_second: float


@dataclass(frozen=True)
class Audio:
    """What was said.

    Attributes:
        wav: float32 [N].
        sample_rate: Hz.
        codes: int64 [L, T] of the segments one after the other, without the pauses between them, as they were drawn:
            where sound was stretched in time, before that.
        score: mean over segments of the kept candidates' scores; see ``Candidate``.
        warnings: what a listener should know, empty if all went well.
    """

    wav: np.ndarray
    sample_rate: int
    codes: np.ndarray
    score: float
    timings: Timings
    segments: tuple[Segment, ...]
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.wav) / self.sample_rate

    @property
    def frames(self) -> int:
        return self.codes.shape[1]

    @property
    def compute_seconds(self) -> float:
        """This request's share of the time its batch took."""
        return self.timings.prepare + self.timings.prefill + self.timings.decode + self.timings.codec

    def save(self, path: str | Path) -> Path:
        """Write 16-bit PCM; see ``vall_e.audio.save_wav``."""
        return save_wav(path, self.wav, self.sample_rate)

    def as_dict(self) -> dict[str, Any]:
        """All but the samples and the codes, for JSON; seconds in milliseconds' precision."""
        rounded = {name: round(value, 3) for name, value in asdict(self.timings).items()}
        segments = [asdict(s) | {"start": round(s.start, 3), "end": round(s.end, 3)} for s in self.segments]
        return {
            "seconds": round(self.seconds, 3), "frames": self.frames, "sample_rate": self.sample_rate,
            "compute_seconds": round(self.compute_seconds, 3), "timings": rounded, "segments": segments,
            "warnings": self.warnings,
        }  # fmt: skip


def one_channel(samples: np.ndarray, what: str = "recording") -> np.ndarray:
    """Samples as float32 [N], the mean of their channels.

    Args:
        samples: [N], or [N, C] as soundfile reads them. Floats are in -1..1; integers, which are scaled to that, are
            int16, int32 or uint8 (around 128).
        what: they are, for errors.

    Raises:
        SpeechError: another shape, such as channels first, or another type.
    """
    samples = np.asarray(samples)
    shape = samples.shape
    samples = samples.reshape(-1) if samples.size == max(shape, default=1) else samples
    if samples.ndim != 1 and (samples.ndim != 2 or shape[0] <= shape[1]):
        raise SpeechError(f"the {what} has samples of shape {list(shape)}: give [N] or [N, channels]")
    kind = samples.dtype
    if kind not in PCM and kind.kind != "f":
        raise SpeechError(f"the {what} has samples of type {kind}: give floats in -1..1, or int16, int32 or uint8")
    if kind in PCM:
        zero, full = PCM[kind]
        samples = (samples.astype(np.float64) - zero) / full
    return (samples if samples.ndim == 1 else samples.mean(1)).astype(np.float32, copy=False)


def load_sound(sound: Reference, sample_rate: int) -> np.ndarray:
    """A file, or samples (see ``one_channel``) with their rate in Hz, as float32 [N] at ``sample_rate``.

    Raises:
        AudioError: a file cannot be read, is damaged, or has samples that are no numbers.
        SpeechError: samples that are not finite, or of another shape or type.
    """
    if not isinstance(sound, tuple):
        return load(sound, sample_rate)[0]
    samples, rate = one_channel(sound[0]), sound[1]
    if not np.isfinite(samples).all():
        raise SpeechError("the recording has samples that are NaN or infinite: give finite ones")
    return resample(samples, rate, sample_rate)


def load_reference(reference: Reference, sample_rate: int) -> np.ndarray:
    """A recording of a voice as float32 [N] at ``sample_rate``.

    Args:
        reference: a file of any format and rate, or samples (see ``one_channel``) with their rate in Hz.

    Raises:
        AudioError: a file cannot be read, is damaged, or has samples that are no numbers.
        SpeechError: it is silent or too short to hear a voice in it, or samples that are not finite, or of another
            shape or type.
    """
    name, wav = "the reference" if isinstance(reference, tuple) else str(reference), load_sound(reference, sample_rate)
    seconds, peak = len(wav) / sample_rate, float(np.abs(wav).max(initial=0.0))
    if seconds < MIN_REFERENCE_SECONDS:
        raise SpeechError(f"{name}: {seconds:.2f} s of reference are too short; give {MIN_REFERENCE_SECONDS} s or more")
    if peak < MIN_REFERENCE_PEAK:
        raise SpeechError(f"{name}: the reference is silent (peak {peak:.1e}); give a recording of a voice")
    return wav
