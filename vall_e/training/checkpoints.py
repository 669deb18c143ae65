"""Checkpoints of a run: whole or not there, the one before kept until the next is whole.

``last.ckpt`` and ``previous.ckpt`` (at first the state before the first step), and in ``checkpoints.json`` the size and
SHA-256 of what was written. The entry is there before the file has its name: a file that fits none is damaged.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vall_e.corpus.work import digest_of, sync, sync_all, write_text

LAST, PREVIOUS, LEDGER, FRESH = "last.ckpt", "previous.ckpt", "checkpoints.json", "fresh.ckpt"
KEPT = 4  # entries of the ledger: more than there can be files


class CheckpointError(OSError):
    """A checkpoint could not be written."""


class Direct(TorchCheckpointIO):
    """Writes where it is told to, and nothing into the system's temporary folder first (Lightning's own way)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)


class Checkpoints(Checkpoint):
    """Saves at the start of a run and behind each stretch of steps.

    Args:
        folder: of one run; all its processes see it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.saved = trainer.global_step
        if trainer.global_step > 0:
            return
        if not (self.folder / PREVIOUS).exists():
            self._save(trainer, PREVIOUS)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()  # of shared weights torch makes one to save it, by a step without gradients

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step > self.saved:  # Lightning ends a stretch again when it goes on from its end
            self._save(trainer, LAST)
            self.saved = trainer.global_step

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        fresh, error = self.folder / FRESH, None
        if trainer.is_global_zero:
            _remove(fresh)
        trainer.strategy.barrier("checkpoint")
        try:
            trainer.save_checkpoint(fresh)
            if trainer.is_global_zero:
                self._commit(fresh, name, trainer.global_step)
        except (OSError, RuntimeError) as caught:
            if not _is_disk_error(caught):
                raise
            error = caught
        if error is not None:  # out here, where nothing holds the file open
            _remove(fresh)
            raise CheckpointError(self._said(name, trainer.global_step, error)) from error
        trainer.strategy.barrier("checkpoint")

    def _said(self, name: str, step: int, error: Exception) -> str:
        free, known, kept = shutil.disk_usage(self.folder).free, _ledger(self.folder), find(self.folder)
        last = f"the last one took {known[0]['bytes'] / 2**20:.1f} MB" if known else "none was written before"
        return (
            f"{self.folder / name}: the checkpoint of step {step} could not be written ({error}; {free / 2**20:.1f} MB "
            f"are free there, {last}): make room and run again, training goes on "
            + (f"from step {kept[1]} ({kept[0].name})" if kept else "from the beginning")
        )

    def _commit(self, fresh: Path, name: str, step: int) -> None:
        """Give a whole file its name."""
        sync_all(fresh)
        entry = {"sha256": digest_of(fresh), "bytes": _size(fresh), "step": step}
        write_text(self.folder / LEDGER, json.dumps([entry, *_ledger(self.folder)][:KEPT], indent=1) + "\n")
        path = self.folder / name
        if name == LAST and path.exists():
            _remove(self.folder / PREVIOUS)
            os.replace(path, self.folder / PREVIOUS)
        os.replace(fresh, path)
        sync(self.folder)


def find(folder: Path) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its step; None where there is none. A damaged one is removed, aloud."""
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        size, known = _size(path), _ledger(folder)
        entry = next((e for e in known if e["bytes"] == size and e["sha256"] == digest_of(path)), None)
        if entry is not None:
            return path, entry["step"]
        sizes = " or ".join(str(e["bytes"]) for e in known) or "none"
        print(
            f"train: {path} is damaged ({size} bytes, and what was written had {sizes}, or another SHA-256): "
            "training goes on from the one before",
            file=sys.stderr,
        )
        _remove(path)
    return None


def reached(folder: Path) -> int | None:
    """The step of the last checkpoint that was written, by the ledger; None where none was."""
    known = _ledger(folder)
    return known[0]["step"] if known else None


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the last checkpoint that was written, and of all files of the run."""
    return _ledger(folder)[0]["bytes"], _size(folder)


def step_back(folder: Path) -> None:
    """Drop the newest checkpoint where there is one before it."""
    if (folder / LAST).exists() and (folder / PREVIOUS).exists():
        _remove(folder / LAST)


def _ledger(folder: Path) -> list[dict[str, Any]]:
    path = folder / LEDGER
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _is_disk_error(error: Exception) -> bool:
    """Of the file system, or of torch's writer, which wraps what the file system said."""
    return isinstance(error, OSError) or any(word in str(error) for word in ("PytorchStreamWriter", "unexpected pos"))


def _size(path: Path) -> int:
    """Bytes of a file, or of a folder's files (deepspeed)."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
