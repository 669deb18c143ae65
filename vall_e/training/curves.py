"""What a run tells while it trains: progress, learning curves, the log of whoever asked."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from vall_e.corpus.work import write_atomic, write_text
from vall_e.memory import peak_mb
from vall_e.models.packing import Packed
from vall_e.training.clock import Clock
from vall_e.training.progress import Progress

Log = Callable[[int, dict[str, float]], None]
LOG_EVERY = 10  # steps
HEADER = ("step", "split", "name", "value")
NOT_DRAWN = ("train.samples_per_second", "train.tokens_per_second", "train.peak_mb")  # told, but no curves


class Curves(Callback):
    """Progress, learning curves as CSV (step, split, name, value), and the log of whoever asked for it.

    Args:
        path: of the CSV in the work folder; after a resume it goes on behind the checkpoint's step.
        total: steps of the whole run.
        log: called with (step, figures).
        live: the same CSV at a place where people look while it grows; its rows are always whole.
        catch_up: tell ``log`` of the steps before a resume first; False where it was told of them already.

    Attributes:
        clock: seconds of training.
        last: the newest value of each figure.
    """

    def __init__(
        self, path: Path, total: int, log: Log | None, live: Path | None = None, catch_up: bool = True
    ) -> None:
        self.path, self.total, self.live, self.catch_up = path, total, live, catch_up
        self.report = log  # Lightning puts its own ``log`` on callbacks
        self.clock = Clock()
        self.last: dict[str, float] = {}
        self.progress: Progress | None = None

    @property
    def seconds(self) -> float:
        return self.clock.seconds

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = dict(state["last"])
        self.clock.start(state["seconds"])

    def on_fit_start(self, *_: Any) -> None:
        self.clock.start()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.rank, self._step = trainer.global_rank, trainer.global_step
        self._rows, self._tokens = 0, 0
        self._seen = (self._step, self.seconds)
        if self.rank == 0:
            rows = self._forget(self._step)
            if self.report is not None and self.catch_up:
                for step, of_step in groupby(rows, key=lambda row: int(row[0])):
                    self.report(step, {f"{split}.{name}": float(value) for _, split, name, value in of_step})
            self.progress = Progress(self.total, self._step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Packed, batch_idx: int
    ) -> None:
        self._rows, self._tokens = self._rows + len(batch.lengths), self._tokens + batch.lengths.sum()
        step = trainer.global_step
        if step == self._step:
            return
        self._step, figures = step, None
        if step % LOG_EVERY == 0 or step == self.total:
            figures = self._figures(trainer, "train.") | {"train.lr": trainer.optimizers[0].param_groups[0]["lr"]}
            figures |= self._speeds(trainer, step) | {"train.peak_mb": peak_mb(module.device)}
            self.write(step, figures)
        if self.progress is not None:
            self.progress.at(step, figures)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.write(trainer.global_step, self._figures(trainer, "val."))

    def on_train_end(self, *_: Any) -> None:
        self.clock.stop()
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Tell ``figures`` of ``step`` to everybody."""
        self.last |= figures
        if self.rank != 0:
            return
        drawn = [
            (step, *name.split(".", 1), f"{value:.6g}") for name, value in figures.items() if name not in NOT_DRAWN
        ]
        self._append(self.path, drawn)
        if self.live is not None and drawn:
            self._append(self.live, drawn)
        if self.report is not None:
            self.report(step, figures)

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.close()

    def _speeds(self, trainer: pl.Trainer, step: int) -> dict[str, float]:
        """Since the last call, of all ranks together; tokens are positions that are no padding."""
        (before, since), self._seen = self._seen, (step, self.seconds)
        took, ranks = max(self._seen[1] - since, 1e-9), trainer.world_size
        rows, tokens, self._rows, self._tokens = self._rows, int(self._tokens), 0, 0
        return {
            "train.steps_per_second": (step - before) / took,
            "train.samples_per_second": ranks * rows / took,
            "train.tokens_per_second": ranks * tokens / took,
        }

    @staticmethod
    def _figures(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
        return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}

    @staticmethod
    def _append(path: Path, rows: Iterable[tuple[object, ...]]) -> None:
        text = lines(rows)
        try:
            if not path.is_file():
                write_text(path, lines([HEADER]) + text)
                return
            with path.open("a", newline="", encoding="utf-8") as file:
                file.write(text)  # at once: whoever reads sees whole rows
        except OSError as error:
            free = shutil.disk_usage(path.parent).free / 2**20
            raise OSError(
                f"{path}: the learning curves could not be written ({error}; {free:.1f} MB are free there): make room "
                "and run again, training goes on from its last checkpoint"
            ) from error

    def _forget(self, step: int) -> list[list[str]]:
        """Drop rows behind ``step``: they were written after the checkpoint that training goes on from. Those that
        stay are returned."""
        rows = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in list(csv.reader(file))[1:] if len(row) == 4 and int(row[0]) <= step]
        write_text(self.path, lines([HEADER, *rows]))
        if self.live is not None:
            self.live.unlink(missing_ok=True)  # DVC draws a missing file as nothing, and trips over one without rows
            if rows:
                write_atomic(self.live, lambda temporary: shutil.copyfile(self.path, temporary))
        return rows


def lines(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()
