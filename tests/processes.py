"""A process of its own for what ends the process that it runs in.

Started anew, not forked: this one has threads (torch's, the test runner's), a fork has none of them but all their locks
and this process's pipes, so that one that stops in a lock holds up whoever reads from them.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any


def exit_code(work: Callable[..., Any], *args: Any, seconds: float = 300) -> int:
    """How a new process that calls ``work(*args)``, a function of a module, ends: minus the signal's number where one
    ended it.

    Raises:
        TimeoutError: it did not end in ``seconds``; it is killed.
    """
    process = get_context("spawn").Process(target=work, args=args, daemon=True)
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{work.__name__} did not end in {seconds:g} s")
    return process.exitcode
