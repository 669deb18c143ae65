"""Recordings whose words are bursts of tone, and a recogniser that hears them about where they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vall_e.evaluation.hearing import Hearing, Hypothesis, Piece, Word

RATE = 16_000
_WORDS = [
    "alpha",
    "bravo",
    "cedar",
    "delta",
    "ember",
    "fox",
    "grove",
    "hotel",
    "india",
    "jewel",
    "kilo",
    "lemon",
    "mango",
    "north",
    "olive",
    "piano",
]


def bursts(count: int, seed: int, noise: float = 1e-4) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """A wave of ``count`` words and their true texts and times: some pauses are none, some are seconds."""
    random = np.random.default_rng(seed)
    parts, truth, at = [np.zeros(RATE // 2)], [], 0.5
    for _ in range(count):
        seconds = random.uniform(0.15, 0.5)
        time = np.arange(int(seconds * RATE)) / RATE
        parts.append(0.3 * np.sin(2 * np.pi * random.uniform(150, 400) * time))
        truth.append((str(random.choice(_WORDS)), at, at + len(time) / RATE))
        pause = random.choice([0.0, 0.06, 0.15, 0.3, 0.8, 3.0], p=[0.2, 0.3, 0.25, 0.15, 0.08, 0.02])
        parts.append(np.zeros(int(pause * RATE)))
        at += len(time) / RATE + len(parts[-1]) / RATE
    wav = np.concatenate([*parts, np.zeros(RATE // 2)])
    return (wav + random.normal(0, noise, len(wav))).astype(np.float32), truth


def roughly(truth: Sequence[tuple[str, float, float]], seed: int, error: float = 0.05) -> list[Word]:
    """Times as attention gives them: off by up to ``error`` seconds, each word until the next one."""
    random = np.random.default_rng(seed)
    starts = [max(0.0, start + random.uniform(-error, error)) for _, start, _ in truth]
    starts = list(np.maximum.accumulate(starts))
    ends = [*starts[1:], truth[-1][2] + error]
    return [Word(text, a, b, 0.9) for (text, _, _), a, b in zip(truth, starts, ends, strict=True)]


class BurstEar:
    """Hears one recording of bursts, window after window. ``misheard`` maps the index of a word to what it says."""

    def __init__(self, truth: Sequence[tuple[str, float, float]], misheard: dict[int, str] | None = None) -> None:
        self.truth, self.misheard, self.offset = truth, misheard or {}, 0.0
        self.longest = 0.0

    def hear(self, clips, prompt=None, vad=False, words=False, languages=None) -> list[Hearing]:
        ((wav, rate),) = clips
        seconds = len(wav) / rate
        self.longest = max(self.longest, seconds)
        inside = [
            (self.misheard.get(k, text), start - self.offset, end - self.offset)
            for k, (text, start, end) in enumerate(self.truth)
            if self.offset <= start < self.offset + seconds and self.misheard.get(k, text)
        ]
        self.offset += seconds
        if not inside:
            return [Hearing("en")]
        said = Hypothesis(" ".join(text for text, _, _ in inside), -0.1, 0.01, True, tuple(range(len(inside))))
        return [Hearing("en", None, [Piece(inside[0][1], seconds, said, tuple(roughly(inside, 7)))])]
