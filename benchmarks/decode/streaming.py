"""Figures of streaming: how soon the first audio comes, and whether one hears where chunks meet.

Dimensions: n codes, T frames.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from benchmarks.decode.bench import LIFT, Bench
from benchmarks.decode.steps import plain
from vall_e.codecs.mel import MelCodec
from vall_e.config import CodecConfig, EncodeConfig
from vall_e.family import ModelConfig
from vall_e.generation.synthesize import Request, Voice
from vall_e.models.checkpoint import VoiceConfig
from vall_e.models.vall_e import VallE
from vall_e.preparation import MelCodecConfig
from vall_e.text.tokenizer import Tokenizer

PHONES = ("a", "b", "d", "e", "k", "o", "s", "t")


@dataclass(frozen=True)
class Streamed:
    """One response as it came.

    Attributes:
        wavs: float32 [N] of each chunk.
        seconds: when each chunk came, from the call on.
        first_frames: frames that had been drawn when the first chunk came.
        offline: float32 [N], the same response spoken in one piece.
        sample_rate, frame_rate: per second.
    """

    wavs: list[np.ndarray]
    seconds: list[float]
    first_frames: int
    offline: np.ndarray
    sample_rate: int
    frame_rate: float


def random_voice(sizes: ModelConfig) -> Voice:
    """A voice of kind ``ar-depth`` of these sizes with the bundled codec, both of seeded random weights."""
    torch.manual_seed(0)
    codec = MelCodec(MelCodecConfig()).eval()
    with torch.no_grad():
        codec.measure(codec.magnitude(0.3 * torch.randn(2, 1, codec.sample_rate)))
        for table in codec.quantizer.tables:
            table.copy_(torch.randn_like(table))
    tokenizer = Tokenizer(PHONES)
    changes = {"kind": "ar-depth", "depth_dim": sizes.dim}
    config = ModelConfig.model_validate(sizes.model_dump() | changes)
    model = VallE(config, codec.levels, codec.codes, len(tokenizer)).eval().requires_grad_(False)
    model.embeddings.segment.weight[1:, 0] = LIFT
    model.heads.first.weight[codec.codes] = 0.0
    model.heads.first.weight[codec.codes, 0] = -10 * LIFT
    voice = VoiceConfig(
        model=config, levels=codec.levels, codes=codec.codes, phones=len(tokenizer), codec=CodecConfig(),
        encode=EncodeConfig(), sampling=plain(), language="en-us", with_stress=False, seconds_per_phone=0.1,
        prompt_seconds=3.0,
    )  # fmt: skip
    return Voice(model, voice, tokenizer, codec)


@cache
def streamed(voice_folder: str | None, sizes: ModelConfig, text: str) -> Streamed:
    """Stream a request and speak the same request whole."""
    from vall_e.generation.streaming import stream

    if voice_folder is None:
        voice, request, sampling = random_voice(sizes), Request(phones=PHONES, seed=1), plain()
    else:
        voice = Voice.load(voice_folder, "cpu")
        request, sampling = Request(text, seed=1), voice.config.sampling.model_copy(update={"candidates": 1})
    drawn: list[None] = []

    def count(_: object, arguments: tuple, __: object) -> None:
        """Called behind each head: level 0 is a new frame."""
        if arguments[1] == 0:
            drawn.append(None)

    hook = voice.model.heads.register_forward_hook(count)
    wavs, seconds, first, started = [], [], 0, time.perf_counter()
    try:
        for chunk in stream(voice, request, sampling):
            if chunk.wav.size:
                first = first or len(drawn)
                wavs.append(chunk.wav)
                seconds.append(time.perf_counter() - started)
    finally:
        hook.remove()
    if first == 0 or len(wavs) < 2:
        raise RuntimeError(f"{len(wavs)} chunks came and {first} frames were counted: there is nothing to measure")
    whole = voice.speak_batch([request], sampling)[0].wav
    return Streamed(wavs, seconds, first, whole, voice.sample_rate, voice.codec.frame_rate)


def _of(bench: Bench) -> Streamed:
    options = bench.options
    return streamed(None if options.voice is None else str(options.voice), options.tiny, options.text)


def first_audio_s(bench: Bench) -> float:
    """Seconds of speech that had been drawn when the first audio came, counted in frames. Target: at most 0.5.

    With the voice of the options, else a tiny model and the bundled codec with random weights. When each chunk came
    stands beside it, by the clock."""
    found = _of(bench)
    audio = np.cumsum([wav.size for wav in found.wavs]) / found.sample_rate
    bench.details["first_audio_s"] = {
        "voice": "random weights" if bench.options.voice is None else bench.options.voice.name,
        "frames": found.first_frames,
        "clock_s": found.seconds[0],
        "chunks": [[float(a), s] for a, s in zip(audio, found.seconds, strict=True)],
    }
    return found.first_frames / found.frame_rate


def join_ratio(bench: Bench) -> float:
    """Greatest step between samples where two chunks meet, over the 99.9th percentile of the steps of the same speech
    made in one piece. Target: below 1."""
    found = _of(bench)
    joins = np.cumsum([wav.size for wav in found.wavs])[:-1]
    steps = np.abs(np.diff(np.concatenate(found.wavs)))
    usual = float(np.percentile(np.abs(np.diff(found.offline)), 99.9))
    greatest = float(steps[joins - 1].max())
    bench.details["join_ratio"] = {"greatest_step": greatest, "offline_percentile": usual, "joins": len(joins)}
    return greatest / usual
