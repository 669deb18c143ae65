"""One run at a time per workspace: the lock that a flow holds, which ends with its process however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WorkspaceBusy(RuntimeError):
    """Another run of the pipeline holds the workspace."""


@contextmanager
def workspace_lock(root: str | Path) -> Iterator[None]:
    """Hold the workspace. Raises WorkspaceBusy at once where another run does."""
    from filelock import FileLock, Timeout

    path = Path(root) / ".work" / "pipeline.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise WorkspaceBusy(f"another run holds {path.resolve()}: wait for it, or cancel it first") from None
    try:
        yield
    finally:
        lock.release()
