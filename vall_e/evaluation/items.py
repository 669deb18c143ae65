"""The audio of the test set: recordings prepared as in training, joined and cut as a plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vall_e.audio import load_prepared
from vall_e.evaluation.testset import Plan
from vall_e.preparation import EncodeConfig

_FLOOR = 3e-4  # noise in the gaps: digital silence is a sound that no recording has


@dataclass(frozen=True)
class Item:
    """A test item: the text to speak, and two waveforms float32 [N] of the speaker at ``sample_rate`` Hz.

    ``prompt_text`` is None where the prompt was cut, for its words are then not known, and where nobody wrote them;
    ``recording`` where nobody said the text.
    """

    id: str
    text: str
    written: str
    language: str
    speaker: str
    seen_speaker: bool
    seen_text: bool
    prompt: np.ndarray
    prompt_text: str | None
    recording: np.ndarray | None
    sample_rate: int
    seed: int


def load_item(plan: Plan, rows: Mapping[str, Mapping[str, Any]], config: EncodeConfig, sample_rate: int) -> Item:
    """Read, prepare as the encode stage does, and join the audio of a plan.

    Args:
        plan: from ``plan_items``.
        rows: manifest id → its row; path, start and end are read.
        config: loudness.
        sample_rate: Hz, the codec's.

    Raises:
        AudioError: a recording cannot be read.
    """
    rng = np.random.default_rng(plan.seed)

    def joined(ids: Sequence[str]) -> np.ndarray:
        clips = [load_prepared(rows[i]["path"], sample_rate, config, rows[i]["start"], rows[i]["end"]) for i in ids]
        return join_clips(clips, sample_rate, plan.gap_seconds, rng)

    recording = joined(plan.recording) if plan.recording else None
    prompt = joined(plan.prompt)
    # Random gaps may carry a join a little over the limit; that is no reason to lose its words.
    cut = plan.prompt_max_seconds is not None and prompt.size > int(plan.prompt_max_seconds * sample_rate) * 1.1
    if cut:
        prompt = cut_at_pause(prompt, sample_rate, int(plan.prompt_max_seconds * sample_rate))
    return Item(
        plan.id,
        plan.text,
        plan.written,
        plan.language,
        plan.speaker,
        plan.seen_speaker,
        plan.seen_text,
        prompt,
        None if cut else plan.prompt_text or None,
        recording,
        sample_rate,
        plan.seed,
    )


def join_clips(
    clips: Sequence[np.ndarray], rate: int, gap_seconds: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Clips [N_i] one after the other with gaps of random length, filled with faint noise → float32 [N]."""
    parts: list[np.ndarray] = []
    for index, clip in enumerate(clips):
        if index:
            gap = int(rng.uniform(*gap_seconds) * rate)
            parts.append(rng.normal(0.0, _FLOOR, gap))
        parts.append(clip)
    return np.concatenate(parts).astype(np.float32)


def cut_at_pause(wav: np.ndarray, rate: int, longest: int) -> np.ndarray:
    """``wav`` [N] cut to at most ``longest`` samples, at the quietest 30 ms of the last third, with a 10 ms fade."""
    frame = max(1, int(0.03 * rate))
    starts = np.arange(longest * 2 // 3, max(longest - frame, longest * 2 // 3 + 1), max(1, frame // 3))
    power = [float(np.square(wav[s : s + frame]).mean()) for s in starts]
    end = min(int(starts[int(np.argmin(power))]) + frame, longest)
    out = wav[:end].copy()
    fade = min(int(0.01 * rate), out.size)
    out[out.size - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return out
