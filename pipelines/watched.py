"""What of the recordings' folder DVC could not watch: it hashes every file below it before a stage runs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vall_e.config import ConfigError

_SHOWN = 5


def check_watched(path: str | Path) -> None:
    """Refuse files on which DVC would fail, or wait for ever.

    Args:
        path: ``ingest.path``, a folder or a file; one that is not there is for ``ingest`` to tell.

    Raises:
        ConfigError: naming the files, what they are and what to do.
    """
    found = list(_unwatchable(Path(path)))
    if not found:
        return
    lines = [f"\n  {file}: {reason}" for file, reason in found[:_SHOWN]]
    more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise ConfigError(
        f"ingest.path {path}: DVC cannot watch what is no readable file:{''.join(lines)}{more}\n"
        "Remove them, or name the recordings in a manifest and give that file as ingest.path (docs/recordings.md)"
    )


def _unwatchable(root: Path) -> Iterator[tuple[str, str]]:
    """Printable paths and what they are, in a fixed order. Like DVC, this does not enter links to folders."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            if reason := _reason(path):
                yield ascii(path)[1:-1], reason


def _reason(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"a link that leads nowhere ({error.strerror})"
    if not stat.S_ISREG(mode):
        return "a pipe, a socket or a device"
    return None if os.access(path, os.R_OK) else "may not be opened"
