"""What stands in for the models of transcribe, and recordings that it can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus.transcription.bursts import RATE
from vall_e.audio import save_wav
from vall_e.corpus.schema import MANIFEST, REJECTS, TRANSCRIPTS, read_rows, write_table
from vall_e.corpus.transcribe import Models, transcribe
from vall_e.evaluation.hearing import Hearing, Hypothesis, Piece, Word
from vall_e.preparation import ExecutorConfig, TranscribeConfig

NEVER = 10**9


class Ear:
    """A recogniser that knows each clip by its length. ``patience`` clips later it dies; ``poison`` breaks it."""

    def __init__(self, words: dict[int, str], patience: int = NEVER, poison: int = 0, language: str = "en") -> None:
        self.words, self.patience, self.poison, self.language = words, patience, poison, language
        self.heard: list[str] = []
        self.calls: list[tuple[str | None, bool]] = []

    def hear(self, clips, prompt=None, vad=False, words=False, languages=None) -> list[Hearing]:
        self.calls.append((prompt, vad))
        if any(len(wav) == self.poison for wav, _ in clips):
            raise RuntimeError("the model broke")
        if len(self.heard) + len(clips) > self.patience:
            raise KeyboardInterrupt
        return [self._hear(len(wav), len(wav) / rate) for wav, rate in clips]

    def _hear(self, samples: int, seconds: float) -> Hearing:
        text = self.words[samples]
        self.heard.append(text)
        if not text:
            return Hearing(self.language)
        parts = text.split()
        times = np.linspace(0.0, seconds, len(parts) + 1)
        words = [Word(w, a, b, 0.9) for w, a, b in zip(parts, times[:-1], times[1:], strict=True)]
        said = Hypothesis(text, -0.1, 0.01, True, tuple(range(len(parts))))
        return Hearing(self.language, 0.8, [Piece(0.0, seconds, said, tuple(words))])


class Shifted:
    """Says of all words that they are in the first half of what it is given."""

    def align(self, wav: np.ndarray, words: Sequence[str]) -> list[Word]:
        times = np.linspace(0.0, len(wav) / RATE / 2, len(words) + 1)
        return [Word(w, a, b, 0.5) for w, a, b in zip(words, times[:-1], times[1:], strict=True)]


class Turns:
    """Two people, the second from ``at`` seconds on."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self, wav: np.ndarray) -> list[tuple[float, float, str]]:
        return [(0.0, self.at, "B"), (self.at, len(wav) / RATE, "A")]


def made(ear: Any, _: Any) -> Any:
    return ear


def recording(name: str, path: Path, wav: np.ndarray, text: str | None, language: str = "en-us") -> dict[str, Any]:
    save_wav(path, wav, RATE)
    return {
        "id": name,
        "path": str(path),
        "group": None,
        "speaker": "s",
        "text": text,
        "language": language,
        "split": "train",
        "seconds": len(wav) / RATE,
        "sample_rate": RATE,
        "channels": 1,
        "digest": f"{name} {text}",
    }


def corpus(folder: Path, texts: Sequence[str | None], language: str = "en-us") -> tuple[Path, list[str]]:
    """A manifest whose recording i has 3200 + i samples."""
    rows = [
        recording(f"u{i:03d}", folder / f"u{i:03d}.wav", np.full(3200 + i, 0.1), text, language)
        for i, text in enumerate(texts)
    ]
    return write_table(rows, MANIFEST, folder / "manifest.parquet"), [row["id"] for row in rows]


def run(
    folder: Path,
    manifest: Path,
    ear: Any,
    executor: ExecutorConfig | None = None,
    models: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """``transcribe`` with ``ear`` for its recogniser: what was kept and rejected, by id, and the figures."""
    rules = {"chars_per_second": (0.0, 1000.0)} | changes.pop("hallucinations", {})
    config = TranscribeConfig.model_validate(
        {"max_reject_rate": 0.9, "align": "off", "hallucinations": rules} | changes
    )
    figures = transcribe(
        config,
        manifest,
        folder / "out",
        folder / "work",
        executor,
        Models(recogniser=partial(made, ear), **models or {}),
        progress=False,
    )
    kept = {row["id"]: row for row in read_rows(folder / "out/transcripts.parquet", TRANSCRIPTS)}
    rejects = {row["id"]: row for row in read_rows(folder / "out/rejects.parquet", REJECTS)}
    assert figures["kept"] == len(kept) and sum(figures["rejected"].values()) == len(rejects)
    return kept, rejects, figures
