"""What every layout hands over, and how a folder is walked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from mimetypes import MimeTypes
from pathlib import Path

from vall_e.corpus.quality import Row, reject
from vall_e.decoders import EXTENSIONS, begins_like_a_recording

STAGE = "ingest"
_KINDS = MimeTypes()  # Python's own table: that of the machine would make a folder two on two machines


@dataclass(frozen=True)
class Recording:
    """A file with what its layout says about it. ``speaker``, ``key`` and ``group`` are raw: any characters may occur.

    ``text``, ``language`` and ``licence`` are None where the layout says none. ``seconds``, if any, is how much of the
    file from its beginning on is meant.
    """

    path: Path
    key: str
    speaker: str
    text: str | None = None
    group: str | None = None
    language: str | None = None
    licence: str | None = None
    seconds: float | None = None


@dataclass
class Found:
    """The recordings of a folder, and rejects of what is in it without usable facts."""

    layout: str
    recordings: list[Recording] = field(default_factory=list)
    rejects: list[Row] = field(default_factory=list)

    def refuse(self, name: str | Path, rule: str, value: object = None, threshold: object = None) -> None:
        self.rejects.append(reject(str(name), STAGE, rule, value, threshold))


def owner(root: Path) -> str:
    """The speaker of a folder that names none: the folder's own name."""
    return root.resolve().name or "speaker"


def is_utf8(path: str | Path) -> bool:
    """Whether a path can stand in a table."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def recordings(root: Path, faults: list[tuple[Path, str]] | None = None) -> Iterator[Path]:
    """Recordings below ``root`` in a fixed order. Links are followed, each folder once, so a loop ends; names that
    begin with a dot are left out. What has another ending than a recording's is one by its first bytes, but for
    documents and pictures, which are not opened.

    Args:
        faults: given what is no recording though it seems one, with the reason: folders that cannot be opened, and
            folders with the name of a recording (which are searched as well).
    """
    seen: set[str] = set()
    faults = [] if faults is None else faults

    def refused(error: OSError) -> None:
        faults.append((Path(error.filename), error.strerror or str(error)))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refused):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        faults += [(Path(folder, name), "a folder") for name in folders if name.lower().endswith(EXTENSIONS)]
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and (name.lower().endswith(EXTENSIONS) or _is_recording(path)):
                yield path


def _is_recording(path: Path) -> bool:
    kind = _KINDS.guess_type(path.name)[0] or ""
    document = kind != "application/octet-stream" and kind.startswith(("text/", "image/", "application/"))
    return not document and begins_like_a_recording(path)
