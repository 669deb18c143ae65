"""Processes that do jobs one at a time: what a team of them is to the executor, and the team of this machine.

A worker makes its state (a loaded model) at its first job and keeps it. One that dies, whatever killed it, leaves an
outcome that says so and is replaced at the next job.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, forkserver, get_context, parent_process
from typing import Any, Protocol

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
REASON = 200  # characters of an error that are kept
Setup = Callable[[], Any]
Work = Callable[[Any, Any, Callable[[int], Any]], None]


class WorkerTraceback(Exception):
    """Where in a worker an error was raised: the text of its traceback, as the cause of the error here."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        slot: place of the worker in its team.
        count: sum of what the job said of its progress.
        error: what it raised.
        trace: the traceback of ``error``.
        death: how the worker died.
    """

    slot: int
    count: int = 0
    error: Exception | None = None
    trace: str = ""
    death: str | None = None

    @property
    def reason(self) -> str | None:
        """Why the job is not done, in a line; None where it is."""
        if self.death is not None:
            return f"its worker died: {self.death}"
        return None if self.error is None else f"{type(self.error).__name__}: {self.error}".split("\n")[0][:REASON]


class Team(Protocol):
    """Workers in numbered slots, each with at most one job."""

    def free(self) -> list[int]:
        """Slots whose worker is there and has no job. While none has one, this waits until a worker is there.

        Raises:
            ValueError: none comes.
        """
        ...

    def give(self, slot: int, job: Any) -> None:
        """Hand ``job`` to the worker of a free slot."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """Jobs that ended, each once, after at most so many seconds."""
        ...

    def counts(self) -> int:
        """Progress of the jobs that are being done, in all."""
        ...

    def close(self) -> None:
        """End all workers, whatever they do."""
        ...


class Worker:
    """What a worker's process runs.

    Args:
        setup, work: as ``run_shards`` has them.
        slot: place of the worker, which chooses its GPU where a machine has several.
    """

    def __init__(self, setup: Setup, work: Work, slot: int) -> None:
        self.setup, self.work, self.slot = setup, work, slot
        self.state: list[Any] = []
        os.environ.update(dict.fromkeys(THREADS, "1"))

    def do(self, job: Any, advance: Callable[[int], Any]) -> tuple[Exception | None, str]:
        """The error of the job, fit to be pickled, and its traceback; None and an empty text for a job done."""
        try:
            self._alone()
            if not self.state:
                self.state.append(self.setup())
                self._alone()
            self.work(self.state[0], job, advance)
        except Exception as error:
            return _portable(error), traceback.format_exc()
        return None, ""

    def _alone(self) -> None:
        """One thread, and of several GPUs one's own; torch is not imported for it."""
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)
            if torch.cuda.device_count() > 1:
                torch.cuda.set_device(self.slot % torch.cuda.device_count())


def _portable(error: Exception) -> Exception:
    """``error``, or where it does not survive pickling a ValueError or RuntimeError that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        return kind(str(error) if kind is ValueError else f"{type(error).__name__}: {error}")
    return error


class LocalTeam:
    """Processes of this machine, forked from a server that has imported torch and what the work needs, and has done
    nothing else: a worker that died is replaced in a moment.

    Args:
        size: how many.
    """

    def __init__(self, setup: Setup, work: Work, size: int) -> None:
        self._make = setup, work
        _start_server(setup, work)
        self._members = [_Member(*self._make, slot) for slot in range(size)]

    def free(self) -> list[int]:
        return [slot for slot, member in enumerate(self._members) if not member.busy]

    def give(self, slot: int, job: Any) -> None:
        if not self._members[slot].process.is_alive():
            self._members[slot].end()
            self._members[slot] = _Member(*self._make, slot)
        self._members[slot].give(job)

    def wait(self, seconds: float) -> list[Outcome]:
        handles: dict[Any, int] = {}
        for slot, member in enumerate(self._members):
            if member.busy:
                handles |= {member.pipe: slot, member.process.sentinel: slot}
        ready = connection.wait(list(handles), seconds) if handles else []
        return [self._members[slot].outcome(slot) for slot in sorted({handles[item] for item in ready})]

    def counts(self) -> int:
        return sum(member.count.value for member in self._members if member.busy)

    def close(self) -> None:
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.end()


class _Member:
    def __init__(self, setup: Setup, work: Work, slot: int) -> None:
        context = get_context("forkserver")
        self.busy = False
        # Without a lock: one process writes, and a lock that was held by a killed one would be held for ever.
        self.count = context.RawValue("q", 0)
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.count, setup, work, slot)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: Any) -> None:
        self.busy, self.count.value = True, 0
        with suppress(OSError):  # of one that died before it read the job: the outcome will say so
            self.pipe.send(job)

    def outcome(self, slot: int) -> Outcome:
        self.busy = False
        try:
            if self.pipe.poll():
                error, trace = self.pipe.recv()
                return Outcome(slot, self.count.value, error, trace)
        except (EOFError, OSError):
            pass
        self.process.join()
        return Outcome(slot, death=_said(self.process.exitcode))

    def end(self) -> None:
        self.process.join()
        self.process.close()
        self.pipe.close()


def _start_server(setup: Setup, work: Work) -> None:
    """The server that workers are forked from, unless it runs; what it imports has one thread in every library."""
    functions = (item.func if isinstance(item, partial) else item for item in (setup, work))
    forkserver.set_forkserver_preload(sorted({"torch", *(item.__module__ for item in functions)} - {"__main__"}))
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        forkserver.ensure_running()
    finally:
        for name in THREADS:
            os.environ.pop(name)
        os.environ.update(before)


def _said(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _serve(pipe: Any, count: Any, setup: Setup, work: Work, slot: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = Worker(setup, work, slot)

    def advance(done: int) -> None:
        count.value += done

    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(worker.do(job, advance))


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, which would go on for nobody."""
    parent_process().join()
    os._exit(1)
