"""How far training is, for people: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines of a log
SPEEDS = {
    "train.samples_per_second": "{:.1f} samples/s",
    "train.tokens_per_second": "{:,.0f} tokens/s",
    "train.peak_mb": "{:,.0f} MB",
}


class Progress:
    """On a terminal a bar with a line of figures below it; elsewhere a line at first, at last and every half minute.

    Args:
        total: steps of the run.
        first: step at which this process begins.
        file: standard error by default.
    """

    def __init__(self, total: int, first: int, file: TextIO | None = None) -> None:
        self.total, self.first, self.step = total, first, first
        self.file = sys.stderr if file is None else file
        self.began = self._said = time.monotonic()
        self._bars: list[tqdm] = []
        if self.file.isatty():
            bar = tqdm(total=total, initial=first, unit="step", desc="train", file=self.file, dynamic_ncols=True)
            self._bars = [bar, tqdm(total=0, bar_format="{desc}", position=1, file=self.file, dynamic_ncols=True)]
        else:
            self._line(f"train: {first}/{total} steps")

    def at(self, step: int, figures: Mapping[str, float] | None = None) -> None:
        """``step`` is done; ``figures`` by their names in the log, where there are new ones."""
        self.step, now = step, time.monotonic()
        if self._bars:
            self._bars[0].update(step - self._bars[0].n)
            if figures:
                self._bars[1].set_description_str(" · ".join(described(figures)))
        elif figures and (now - self._said >= LINE_SECONDS or step == self.total):
            self._said, left = now, clock_time(self.seconds_left())
            parts = [f"train: {100 * step // self.total}% {step}/{self.total} steps", *described(figures)]
            self._line(" · ".join([*parts, f"{left} left" if step < self.total else f"{clock_time(now - self.began)}"]))

    def seconds_left(self) -> float:
        """By the pace of this process so far, all that it did included."""
        done = self.step - self.first
        return (time.monotonic() - self.began) / done * (self.total - self.step) if done else float("nan")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bars:
            tqdm.write(f"train: {text}", file=self.file)
        else:
            self._line(f"train: {text}")

    def close(self) -> None:
        for bar in reversed(self._bars):
            bar.close()

    def _line(self, text: str) -> None:
        print(text, file=self.file, flush=True)


def described(figures: Mapping[str, float]) -> list[str]:
    """``loss 3.412``, ``accuracy 0 0.41, 1 0.22, stt 0.30``, ``rate 0.002``, ``12.3 samples/s`` …

    Those of training, by their names there; those of validation with ``val`` in front.
    """
    parts: list[str] = []
    for split, said in (("train", ""), ("val", "val ")):
        own = {name.removeprefix(f"{split}."): v for name, v in figures.items() if name.startswith(f"{split}.")}
        if "loss" in own:
            parts.append(f"{said}loss {own['loss']:.3f}")
        for kind in ("loss", "accuracy"):
            shares = [
                f"{name.removeprefix(f'{kind}.')} {v:.2f}" for name, v in own.items() if name.startswith(f"{kind}.")
            ]
            if shares and (kind == "accuracy" or len(shares) > 1):
                parts.append(f"{said}{kind if kind == 'accuracy' else 'losses'} {', '.join(shares)}")
        if "wer" in own:
            parts.append(f"{said}WER {own['wer']:.2f}")
    if "train.lr" in figures:
        parts.append(f"rate {figures['train.lr']:.2g}")
    return parts + [form.format(figures[name]) for name, form in SPEEDS.items() if name in figures]


def clock_time(seconds: float) -> str:
    """``1:02:03``, ``2:03``; ``?`` for what is not known."""
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
