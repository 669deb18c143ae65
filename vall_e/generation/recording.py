"""What the commands that change a recording share: its codes at the loudness of training, and codes back to its own.

Dimensions: N samples, L levels, T frames.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vall_e.audio import normalize_loudness
from vall_e.decoding import SamplingConfig
from vall_e.generation.ar import Candidate
from vall_e.generation.loaded import LoadedVoice
from vall_e.generation.quality import Fault, faults_of_codes, faults_of_sound
from vall_e.generation.respond import begins_masked, respond
from vall_e.generation.sounds import known_ids
from vall_e.generation.speech import SpeechError, one_channel
from vall_e.generation.splice import quietest
from vall_e.models.packing import Sample

UNFINISHED = 5.0  # nats: any candidate that stopped by itself is better than one that did not
FADE = 0.005  # seconds, at the borders of pieces that were made apart
SILENT = 1e-4  # peak
WHOLE = 0.9  # of a source: with less the model has stopped too early


@dataclass(frozen=True)
class Changed:
    """A recording that was changed.

    Attributes:
        wav: float32 [N].
        codes: int64 [L, T] that were made.
        compute_seconds: time it took.
        start, end: seconds in ``wav`` between which it is new, cross-fades included.
        warnings: what a listener should know.
    """

    wav: np.ndarray
    sample_rate: int
    codes: np.ndarray
    compute_seconds: float
    start: float
    end: float
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return len(self.wav) / self.sample_rate


def check_sound(wav: np.ndarray, what: str) -> np.ndarray:
    """``wav`` as ``one_channel`` reads it, float32 [N]. Raises SpeechError where it holds no sound."""
    wav = one_channel(wav, what)
    if wav.size == 0 or not np.isfinite(wav).all() or float(np.abs(wav).max()) < SILENT:
        raise SpeechError(f"the {what} holds no sound: give a recording of speech")
    return wav


def encode(voice: LoadedVoice, wav: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes int64 [L, T] of float32 ``wav`` [N] at the voice's rate, untrimmed, and the gain that brought it to the
    loudness of the training data."""
    lufs, levelled = voice.config.encode.loudness_lufs, wav
    if lufs is not None:
        levelled = normalize_loudness(wav, voice.sample_rate, lufs)
    peak = float(np.abs(wav).max(initial=0.0))
    gain = float(np.abs(levelled).max()) / peak if peak > 0 else 1.0
    with torch.inference_mode():
        codes = voice.codec.encode(torch.from_numpy(levelled)[None, None].to(voice.device))[0]
    return codes.cpu().numpy().astype(np.int64), gain


def decode(voice: LoadedVoice, codes: np.ndarray, gain: float) -> np.ndarray:
    """Float32 [N] at the voice's rate from codes int64 [L, T], at the loudness before ``gain``."""
    return voice.to_wave(codes) / np.float32(gain or 1.0)


def text_ids(voice: LoadedVoice, text: str | None, language: str | None) -> np.ndarray:
    """Phones int64 [S] of a text; none without one. Raises UnknownPhoneError as ``known_ids`` does."""
    if not text or not text.strip():
        return np.zeros(0, dtype=np.int64)
    language = language or voice.config.language
    return known_ids(voice, voice.phones([text], language)[0], text, language)


def language_id(voice: LoadedVoice, language: str | None) -> int:
    """Raises SpeechError for a language that the voice does not know."""
    return voice.language_id(language or voice.config.language)


def goodness(candidate: Candidate) -> float:
    """How much the text, and what was spoken before, explains it."""
    return candidate.alignment + candidate.score - UNFINISHED * (not candidate.finished)


def best(candidates: Sequence[Candidate], _: Sample) -> Candidate:
    """By ``goodness``."""
    return max(candidates, key=goodness)


def pieces(voice: LoadedVoice, wav: np.ndarray, longest: float) -> list[np.ndarray]:
    """``wav`` [N] in pieces of at most ``longest`` seconds, cut where it is quiet."""
    rate, out = voice.sample_rate, []
    size = max(1, int(longest * rate))
    while len(wav) > size:
        places = np.arange(max(1, size * 2 // 3), size, max(1, rate // 200))
        cut = int(places[quietest(wav, places, rate)])
        out.append(wav[:cut])
        wav = wav[cut:]
    return [*out, wav]


def change(
    voice: LoadedVoice,
    wav: np.ndarray,
    make: Callable[[np.ndarray], tuple[Sample, np.ndarray | None]],
    sampling: SamplingConfig,
    seed: int,
    warnings: list[str],
    speech: bool = True,
) -> Changed:
    """All of a recording anew, a piece at a time, as long as it is.

    Args:
        wav: float32 [N] at the voice's rate.
        make: from a piece's codes int64 [L, T] to what the model reads, and codes given to demasking or None.
        speech: is what is made: loops and silence that the recording does not have are told.
    """
    started, rate = time.perf_counter(), voice.sample_rate
    sources = pieces(voice, wav, sampling.max_seconds)
    encoded = [encode(voice, source) for source in sources]
    samples, given = zip(*(make(codes) for codes, _ in encoded), strict=True)
    frames = [codes.shape[1] for codes, _ in encoded]
    known = None if given[0] is None else given
    seeds = [seed + index for index in range(len(samples))]
    lengths = frames if begins_masked(voice.model, sampling) else None  # left to right they end with their source
    found = respond(voice.model, samples, sampling, seeds, frames, best, frames=lengths, given=known)
    out = []
    for source, (was, gain), (_, codes) in zip(sources, encoded, found, strict=True):
        new = decode(voice, codes, gain)[: len(source)]
        if speech:
            begun = sum(map(len, out))
            where = f"from {begun / rate:.1f} to {(begun + len(source)) / rate:.1f} s: " if len(sources) > 1 else ""
            warnings += [where + fault.message for fault in _added_faults(voice, was, codes, new * np.float32(gain))]
        out.append(np.pad(new, (0, len(source) - len(new))))
        if codes.shape[1] < WHOLE * was.shape[1]:
            ended = (sum(map(len, out)) - len(source) + len(new)) / rate
            warnings.append(f"the model stopped early: from {ended:.1f} s on there is silence")
    _soften(out, rate)
    codes = np.concatenate([c for _, c in found], axis=1)
    seconds = time.perf_counter() - started
    return Changed(np.concatenate(out), rate, codes, seconds, 0.0, len(wav) / rate, warnings)


def _added_faults(voice: LoadedVoice, source: np.ndarray, codes: np.ndarray, wav: np.ndarray) -> list[Fault]:
    """What is wrong in ``codes`` int64 [L, T] and their sound, and not in the codec's copy of the ``source`` [L, T]."""
    found = _faults(voice, codes, wav)
    there = {fault.kind for fault in _faults(voice, source, voice.to_wave(source))} if found else set()
    return [fault for fault in found if fault.kind not in there]


def _faults(voice: LoadedVoice, codes: np.ndarray, wav: np.ndarray) -> list[Fault]:
    """Loops in codes int64 [L, T], and silence in their sound float32 [N]."""
    return [*faults_of_codes(codes, voice.codec.frame_rate), *faults_of_sound(wav, voice.sample_rate)]


def _soften(parts: list[np.ndarray], rate: int) -> None:
    """Fade parts out and in where they meet, in quiet places."""
    for left, right in itertools.pairwise(parts):
        size = min(round(FADE * rate), len(left), len(right))
        ramp = np.linspace(0, 1, size, dtype=np.float32)
        left[len(left) - size :] *= ramp[::-1]
        right[:size] *= ramp
