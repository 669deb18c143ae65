"""Unfinished work of a long stage: a folder keyed by everything that the result depends on.

DVC deletes a stage's outs before it runs the stage, so half-done work cannot live there. It lives in
``.work/STAGE-KEY/``, where the key is a hash of inputs, parameters and code. Files get into it under a temporary
name, are brought to the disk and renamed, so one that is there is whole; the next run with the same key skips it. A
process killed at any moment, and a machine that loses its power, cost the files that were being written, nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

_KEY_LENGTH = 16
_LIBRARY = Path(__file__).parent.parent
_TEMPORARY = ".tmp-"


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files below a folder.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
    """
    path = Path(path)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            digest.update(f"{file.relative_to(path).as_posix()}\0{digest_of(file)}\n".encode())
        return digest.hexdigest()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder, so the stage that makes it has not run")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_of(*names: str) -> list[Path]:
    """Source files and folders of this package by their names below it, such as ``corpus/work.py``, for ``key_of``."""
    return [_LIBRARY / name for name in names]


def key_of(*inputs: str | Path, params: Any = None, code: Iterable[str | Path] = ()) -> str:
    """A short key that changes with anything the result depends on.

    Args:
        inputs: files or folders (their bytes count) or, as plain strings, digests and other facts.
        params: parameters: a pydantic model or anything that JSON can say.
        code: source files and folders whose bytes count.

    Returns:
        16 hexadecimal digits.
    """
    if isinstance(params, BaseModel):
        params = params.model_dump(mode="json")
    facts = {
        "inputs": [digest_of(item) if isinstance(item, Path) else item for item in inputs],
        "params": params,
        "code": [digest_of(item) for item in code],
    }
    text = json.dumps(facts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{value!r} cannot be part of a key: use numbers, strings, lists and dictionaries")


def write_atomic(path: str | Path, writer: Callable[[Path], object]) -> Path:
    """Let ``writer`` make a file under a temporary name beside ``path`` and rename it when it is whole and on the disk.

    The temporary name keeps the suffix and holds the process id, so that two processes never share one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        writer(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def sync(path: Path) -> None:
    """Bring a file's bytes, or the names in a folder, to the disk: a rename may otherwise outlive what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of folders, some network file systems have no such thing
            raise
    finally:
        os.close(handle)


def sync_all(path: Path) -> None:
    """``sync`` for a file, or for a folder and all that is in it."""
    if path.is_dir():
        for inner in path.iterdir():
            sync_all(inner)
    sync(path)


def write_text(path: str | Path, text: str) -> Path:
    """A text file in UTF-8, written atomically."""
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_folder(fresh: Path, place: Path) -> None:
    """Rename the folder ``fresh``, made beside ``place``, to ``place`` when all of it is on the disk. What was there
    goes."""
    sync_all(fresh)
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(fresh, place)
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def others(stage: str, key: str, root: str | Path) -> list[Path]:
    """Work folders of a stage with other keys than ``key``, the last changed first."""
    own = WorkFolder.place(stage, key, root).name
    known = re.compile(rf"{re.escape(stage)}-[0-9a-f]{{{_KEY_LENGTH}}}")
    there = [path for path in Path(root).glob(f"{stage}-*") if path.is_dir() and known.fullmatch(path.name)]
    return sorted((path for path in there if path.name != own), key=lambda path: path.stat().st_mtime, reverse=True)


class WorkFolder:
    """``root/STAGE-KEY``: made when missing; folders of the same stage with other keys are stale and go.

    Args:
        stage: name of the stage: letters, digits, ``_`` and ``-``.
        key: from :func:`key_of`.
        root: folder that git and DVC ignore.
        alone: False leaves those of other keys to the caller (``others``).
    """

    def __init__(self, stage: str, key: str, root: str | Path = ".work", *, alone: bool = True):
        self.stage, self.key = stage, key
        self.path = self.place(stage, key, root)
        self.path.mkdir(parents=True, exist_ok=True)
        for other in others(stage, key, root) if alone else ():
            shutil.rmtree(other, ignore_errors=True)
        for leftover in self.path.glob(f"{_TEMPORARY}*"):
            leftover.unlink(missing_ok=True)

    @staticmethod
    def place(stage: str, key: str, root: str | Path = ".work") -> Path:
        return Path(root) / f"{stage}-{key}"

    def done(self, name: str) -> bool:
        """The file ``name`` was committed, by this run or an earlier one."""
        return (self.path / name).is_file()

    def forget(self, name: str) -> None:
        """Have the file ``name`` made again."""
        (self.path / name).unlink(missing_ok=True)

    def commit(self, name: str, writer: Callable[[Path], object]) -> Path:
        """Write the file ``name`` through ``writer(path)``, atomically."""
        return write_atomic(self.path / name, writer)

    def publish(self, out_dir: str | Path, names: Iterable[str] | None = None) -> list[Path]:
        """Put finished files into the stage's out folder, which they replace, and remove the work folder.

        The out folder is prepared beside its place and renamed, so that it is never half-full. Files are hard-linked,
        or copied where the file system cannot.

        Args:
            names: files to publish, by default all; a missing one is an error.
        """
        out_dir = Path(out_dir)
        names = sorted(p.name for p in self.path.iterdir() if p.is_file()) if names is None else list(names)
        missing = [name for name in names if not self.done(name)]
        if missing:
            raise FileNotFoundError(f"{self.path} cannot be published: unfinished {', '.join(missing[:5])}")
        prepared = out_dir.with_name(f".{out_dir.name}.new")
        shutil.rmtree(prepared, ignore_errors=True)
        prepared.mkdir(parents=True)
        for name in names:
            (prepared / name).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(self.path / name, prepared / name)
        replace_folder(prepared, out_dir)
        self.discard()
        return [out_dir / name for name in names]

    def discard(self) -> None:
        """Remove the folder and, when it was the last one, its root."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.path.parent.rmdir()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
