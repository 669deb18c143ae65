"""Arrays on disk that are mapped into memory: opening them reads nothing, a row costs the pages that it lies on.

They live in folders that are built once, by whichever process needs them first. Dimensions: N rows, V values.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from vall_e.corpus.work import replace_folder


def fingerprint(paths: Iterable[Path]) -> list[str]:
    """What tells a file from another without reading it: name, size, time of change in ns and inode.

    Tables are written beside their place and renamed, so a changed one has another time and nearly always inode.

    Raises:
        FileNotFoundError: one is missing.
    """
    facts = [(path.name, path.stat()) for path in paths]
    return [f"{name} {s.st_size} {s.st_mtime_ns} {s.st_ino}" for name, s in facts]


def cached(root: Path, name: str, key: str, build: Callable[[Path], object]) -> Path:
    """The folder ``root/NAME-KEY``, made by ``build`` where it is missing; those of ``name`` with other keys go.

    One process builds at a time and the others wait, then find what it made. The folder appears whole or not at all.

    Args:
        key: changes with whatever the contents depend on.
        build: writes into the (empty) folder that it is given.
    """
    folder = root / f"{name}-{key}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{name}.lock"):
        if folder.is_dir():
            return folder
        for stale in (*root.glob(f"{name}-*"), *root.glob(f".{name}-*")):
            shutil.rmtree(stale, ignore_errors=True)
        fresh = root / f".{name}-{key}"
        fresh.mkdir()
        try:
            build(fresh)
            replace_folder(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def save(folder: Path, **arrays: np.ndarray) -> None:
    """Arrays of one length a row, a file each; ``mapped`` opens one."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def mapped(folder: Path, name: str) -> np.ndarray:
    """An array of ``save``, read-only."""
    # A plain array over the mapped pages: slices of np.memmap cost ten times as much.
    return np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)


class RaggedWriter:
    """Writes rows of different lengths one behind the other.

    Args:
        folder, name: of the files ``NAME.bin`` (the values) and ``NAME.starts.npy``.
        dtype: of the values.
    """

    def __init__(self, folder: Path, name: str, dtype: Any) -> None:
        self.folder, self.name, self.dtype = folder, name, np.dtype(dtype)
        self.lengths: list[np.ndarray] = []
        self.file = (folder / f"{name}.bin").open("wb")

    def add(self, values: Iterable[np.ndarray], lengths: np.ndarray) -> None:
        """Rows: ``values`` in pieces of any size, ``lengths`` int64 [n] of the rows."""
        for piece in values:
            self.file.write(np.ascontiguousarray(piece, self.dtype).tobytes())
        self.lengths.append(np.asarray(lengths, np.int64))

    def close(self) -> None:
        """Finish: only now can it be opened."""
        self.file.close()
        save(self.folder, **{f"{self.name}.starts": np.concatenate(([0], *self.lengths)).cumsum(dtype=np.int64)})


class Ragged:
    """Rows that ``RaggedWriter`` wrote; ``rows[i]`` is a read-only view.

    Args:
        dtype: that it was written with.

    Attributes:
        values: [V] of all rows.
        starts: int64 [N + 1], where each row begins and the last one ends.
    """

    def __init__(self, folder: Path, name: str, dtype: Any) -> None:
        path = folder / f"{name}.bin"
        empty = path.stat().st_size == 0  # which cannot be mapped
        self.values = np.zeros(0, dtype) if empty else np.memmap(path, dtype, "r").view(np.ndarray)
        self.starts = mapped(folder, f"{name}.starts")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Int64 [N]."""
        return np.diff(self.starts)


class Grouping:
    """Rows by what they have in common.

    Attributes:
        code: int32 [N], the group of each row.
        order: int64 [N], rows group after group.
        starts: int64 [G + 1], where each group begins in ``order``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.code, self.order, self.starts = (mapped(folder, f"{name}.{part}") for part in ("code", "order", "starts"))

    @staticmethod
    def save(folder: Path, name: str, code: np.ndarray, count: int) -> None:
        """Write the grouping of rows by ``code`` int [N], each below ``count``."""
        starts = np.concatenate(([0], np.bincount(code, minlength=count).cumsum())).astype(np.int64)
        order = np.argsort(code, kind="stable")
        save(folder, **{f"{name}.code": code.astype(np.int32), f"{name}.order": order, f"{name}.starts": starts})

    def like(self, index: int) -> np.ndarray:
        """Int64 [n]: the rows of the group that row ``index`` is of, itself among them, in their order."""
        group = self.code[index]
        return self.order[self.starts[group] : self.starts[group + 1]]
