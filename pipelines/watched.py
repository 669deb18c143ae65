"""What of the recordings' folder DVC could not watch: it hashes every file below it before a stage runs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vall_e.config import ConfigError

_SHOWN = 5


def check_watched(path: str | Path, project: Path | None = None) -> None:
    """Refuse files on which DVC would fail, or wait for ever. Those that it is told to ignore are for ``ingest``, which
    makes rejects of them.

    Args:
        path: ``ingest.path``, a folder or a file; one that is not there is for ``ingest`` to tell.
        project: the DVC project, for its ``.dvcignore``, which counts for what is in the project only.

    Raises:
        ConfigError: naming the files, what they are and what to do.
    """
    found = list(_unwatchable(Path(path)))
    if found and project is not None:
        found = _watched(found, project)
    if not found:
        return
    lines = [f"\n  {ascii(file)[1:-1]}: {reason}" for file, reason in found[:_SHOWN]]
    more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise ConfigError(
        f"ingest.path {path}: DVC cannot watch what is no readable file:{''.join(lines)}{more}\n"
        "Remove them; or name them in .dvcignore, where they are in the project, and ingest makes rejects of them; or "
        "name the recordings in a manifest and give that file as ingest.path (docs/recordings.md)"
    )


def _watched(found: list[tuple[str, str]], project: Path) -> list[tuple[str, str]]:
    """Without the files that ``.dvcignore`` names."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            return [
                (file, reason) for file, reason in found if not repo.dvcignore.is_ignored_file(os.path.abspath(file))
            ]
    except NotDvcRepoError:
        return found


def _unwatchable(root: Path) -> Iterator[tuple[str, str]]:
    """Paths and what they are, in a fixed order. Like DVC, this does not enter links to folders."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            if reason := _reason(path):
                yield path, reason


def _reason(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"a link that leads nowhere ({error.strerror})"
    if any("\udc80" <= c <= "\udcff" for c in path):
        return "a name that is no UTF-8"
    if not stat.S_ISREG(mode):
        return "a pipe, a socket or a device"
    return None if os.access(path, os.R_OK) else "may not be opened"
