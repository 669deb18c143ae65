"""What people read while a model trains: few lines in a log, a bar on a terminal, all figures in both."""

from __future__ import annotations

import io

import pytest

from vall_e.training import progress
from vall_e.training.progress import Progress, clock_time, described

FIGURES = {
    "train.loss": 3.41234, "train.loss.0": 3.0, "train.loss.1": 4.0, "train.accuracy.0": 0.412, "train.accuracy.1": 0.2,
    "train.accuracy.stt": 0.55, "train.lr": 0.002, "train.samples_per_second": 12.34, "train.tokens_per_second": 3456.7,
    "train.peak_mb": 1234.4, "val.loss": 2.5, "val.accuracy.0": 0.5, "val.wer": 0.25,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_all_figures_are_said_whatever_levels_and_tasks_there_are() -> None:
    assert described(FIGURES) == [
        "loss 3.412", "losses 0 3.00, 1 4.00", "accuracy 0 0.41, 1 0.20, stt 0.55", "val loss 2.500",
        "val accuracy 0 0.50", "val WER 0.25", "rate 0.002", "12.3 samples/s", "3,457 tokens/s", "1,234 MB",
    ]  # fmt: skip
    assert described({}) == []


def test_a_log_has_a_line_at_first_at_last_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    told = Progress(1000, 200, log)
    for step in range(201, 1001):
        now[0] = 100.0 + 0.1 * (step - 200)
        told.at(step, FIGURES if step % 10 == 0 else None)
    told.close()
    lines = log.getvalue().splitlines()
    assert lines[0] == "train: 200/1000 steps"
    assert [line.split(" · ")[0] for line in lines[1:]] == [
        "train: 50% 500/1000 steps", "train: 80% 800/1000 steps", "train: 100% 1000/1000 steps",
    ]  # fmt: skip
    assert lines[1].endswith(" · 1,234 MB · 0:50 left") and "accuracy 0 0.41, 1 0.20, stt 0.55" in lines[1]
    assert lines[-1].endswith(" · 1:20") and all("\r" not in line for line in lines)


def test_a_terminal_has_a_bar_and_a_line_of_figures() -> None:
    terminal = Terminal()
    told = Progress(10, 4, terminal)
    told.at(10, FIGURES)
    told.say("no samples of step 10: disk full")
    told.close()
    shown = terminal.getvalue()
    assert "10/10" in shown and "\r" in shown and "3,457 tokens/s" in shown
    assert "train: no samples of step 10: disk full" in shown


def test_times_are_read_as_clocks() -> None:
    assert [clock_time(s) for s in (5, 65, 3723, float("nan"))] == ["0:05", "1:05", "1:02:03", "?"]
