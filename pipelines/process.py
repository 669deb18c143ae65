"""A child process whose lines are followed and whose whole process group ends with it.

DVC starts a shell, the shell a stage, the stage its workers: killing DVC alone would leave the rest running. The child
leads a group of its own, which is ended on a timeout, on a cancelled flow and on an interrupt.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

GRACE_SECONDS = 10.0
_PROGRESS_SECONDS = 30.0  # a progress bar rewrites its line every second; a log wants it seldom


class StepTimeout(TimeoutError):
    """The process was ended because it ran too long."""


def run_process(
    command: Sequence[str],
    on_line: Callable[[str], None],
    *,
    cwd: str | Path = ".",
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    grace: float = GRACE_SECONDS,
) -> tuple[int, list[str]]:
    """Run a command, hand each line of its output to ``on_line``, and wait for it.

    Args:
        timeout: seconds it may run.
        grace: seconds between the polite signal and the final one.

    Returns:
        the exit code (negative: the signal that ended it) and the lines.

    Raises:
        StepTimeout: it ran longer than ``timeout``; nothing of it is left running.
    """
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    pieces: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, pieces), daemon=True).start()
    lines: list[str] = []
    deadline = time.monotonic() + timeout if timeout else None
    last_progress = 0.0
    try:
        while (piece := _next(pieces, deadline)) is not None:
            text = piece.decode("utf-8", "replace").rstrip("\n")
            if not text.strip():
                continue
            if text.endswith("\r"):
                if time.monotonic() - last_progress < _PROGRESS_SECONDS:
                    continue
                last_progress = time.monotonic()
            lines.append(text.strip("\r"))
            on_line(lines[-1])
        process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except (queue.Empty, subprocess.TimeoutExpired):
        raise StepTimeout(f"`{' '.join(command)}` ran longer than {timeout:g} s and was ended") from None
    finally:
        end_group(process, grace)
    return process.returncode, lines


def end_group(process: subprocess.Popen, grace: float = GRACE_SECONDS) -> None:
    """End a process and everything in its group: politely first, after ``grace`` seconds without asking."""
    for kind, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        if not _signal_group(process.pid, kind):
            break
        until = time.monotonic() + wait
        while time.monotonic() < until and _signal_group(process.pid, 0):
            process.poll()  # reaps the leader: an unreaped one would keep the group alive
            time.sleep(0.05)
    process.wait()


def _signal_group(group: int, kind: int) -> bool:
    """False where the group has no process any more."""
    try:
        os.killpg(group, kind)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _read(process: subprocess.Popen, pieces: queue.Queue[bytes | None]) -> None:
    """Split the output at line feeds and, for progress bars, at carriage returns."""
    buffer = b""
    while chunk := process.stdout.read1(65536):
        buffer += chunk.replace(b"\r\n", b"\n")
        *done, buffer = buffer.replace(b"\r", b"\r\n").split(b"\n")
        for piece in done:
            pieces.put(piece)
        if buffer.endswith(b"\r"):
            pieces.put(buffer)
            buffer = b""
    if buffer:
        pieces.put(buffer)
    pieces.put(None)


def _next(pieces: queue.Queue[bytes | None], deadline: float | None) -> bytes | None:
    return pieces.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
