"""A small voice with random weights in memory, and recordings for it."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from tests.codecs import small
from vall_e.decoding import DemaskConfig, SamplingConfig
from vall_e.family import KINDS, ModelConfig
from vall_e.generation.synthesize import Voice
from vall_e.models.checkpoint import VoiceConfig
from vall_e.preparation import CodecConfig, EncodeConfig
from vall_e.text.phonemes import phonemize
from vall_e.text.tokenizer import Tokenizer

WORDS = ("one", "two", "three", "one two", "one two three")


@cache
def voice(kind: str = "ar-depth", tasks: tuple[str, ...] = ("tts",), seconds: float = 2.0) -> Voice:
    """It knows the sounds of 'one two three'."""
    torch.manual_seed(0)
    codec, tokenizer = small.mel(), Tokenizer.fit(phonemize(list(WORDS), "en-us"))
    model = ModelConfig(
        kind=kind, tasks=tasks, dim=32, layers=2, heads=2, kv_heads=1, ff_dim=64, depth_dim=16, codebook_dim=16,
        alignment=KINDS[kind].begins,
    )  # fmt: skip
    config = VoiceConfig(
        model=model, levels=codec.levels, codes=codec.codes, phones=len(tokenizer), codec=CodecConfig(),
        encode=EncodeConfig(), language="en-us", with_stress=True, seconds_per_phone=0.06, prompt_seconds=1.0,
        sampling=SamplingConfig(max_seconds=seconds, candidates=2, demask=DemaskConfig(steps=4)),
    )  # fmt: skip
    return Voice(config.build().eval(), config, tokenizer, codec)


def recording(seconds: float, rate: int = 16_000, seed: int = 0, pitch: float = 120.0) -> np.ndarray:
    """Syllables of a buzz with pauses between them, float32 [N], of 16 bits."""
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 6)) / k for k in range(1, 20))
    loud = np.clip(np.sin(2 * np.pi * 2.5 * t) + 0.3, 0, None) ** 0.5
    wav = 0.1 * buzz * loud + 1e-3 * rng.normal(size=len(t))
    return (np.round(wav * 32768) / 32768).astype(np.float32)
