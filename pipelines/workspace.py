"""One run at a time per workspace: the lock that a flow holds, which ends with its process however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WorkspaceBusy(RuntimeError):
    """Another run of the pipeline holds the workspace."""


@contextmanager
def workspace_lock(root: str | Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the workspace. Raises WorkspaceBusy where another run does, and still does after ``wait_seconds``."""
    from filelock import FileLock, Timeout

    path = Path(root) / ".work" / "pipeline.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_seconds, poll_interval=min(1.0, wait_seconds))
    except Timeout:
        waited = f" after {wait_seconds:g} s of waiting" if wait_seconds else ""
        raise WorkspaceBusy(f"another run holds {path.resolve()}{waited}: wait for it, or cancel it first") from None
    try:
        yield
    finally:
        lock.release()
