"""Work over shards in this process, in several, or on a Ray cluster, with the same results.

Every worker computes with one thread, because sums of floats depend on how many threads share them. A shard whose
worker died or raised an error is done again; where it fails in every try, its rows are halved until the ones that do it
are found, and the shard is done without them (``Shard.poisoned``), so that one recording never stops a corpus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from vall_e.corpus.work import write_text
from vall_e.corpus.workers import LocalTeam, Outcome, Team, WorkerTraceback
from vall_e.preparation import ExecutorConfig

State = TypeVar("State")
Job = TypeVar("Job")
Advance = Callable[[int], Any]
POISONED = "poisoned"  # rule of the rejects that killed their worker or raised an error
MAX_POISONED = 8  # of one shard: more say that something else is broken
TELL_SECONDS = 0.5
NOTE = "in-progress.txt"


class ShardError(ValueError):
    """A shard killed its worker in every try, and no row of it can be blamed."""


@dataclass(frozen=True)
class Shard:
    """A job made of rows, any of which the executor may leave out. Stages add fields of their own.

    Attributes:
        name: of its result, for messages.
        rows: what to work on, the rows of a table.
        poisoned: rows that were left out because each fails alone, and why: rejects of rule ``POISONED``, which the
            work writes.
        trial: only to see whether ``rows`` can be done; the work leaves no file.
        number: its place among the shards of its table.
    """

    name: str
    rows: Sequence[dict[str, Any]]
    poisoned: tuple[tuple[dict[str, Any], str], ...] = ()
    trial: bool = False
    number: int = 0


def run_shards(
    setup: Callable[[], State],
    work: Callable[[State, Job, Advance], None],
    jobs: Iterable[Job],
    executor: ExecutorConfig,
    advance: Advance,
    notes: Path | None = None,
) -> None:
    """Do every job; the first error that stays after ``executor.retries`` stops the rest and is raised.

    A job whose worker died, or that raised anything but a ValueError (which says that the input is wrong), is tried
    again. A ``Shard`` that fails in every try is done without the rows that fail alone. An error is raised where there
    are none or too many, where a worker fails without any row, and where it is the machine's (OSError, MemoryError).
    No more jobs are taken from ``jobs`` than there are idle workers.

    Args:
        setup: makes what a process needs once (a loaded model); picklable.
        work: does one job, calling ``advance(n)`` as it gets on; picklable. Its result is a file that it writes.
        jobs: picklable descriptions of shards; of type ``Shard`` where rows that fail shall be left out.
        executor: where, and how many processes. A single local one, or a single local job, stays in this process.
        advance: told in this process how much was done since the last call; less than nothing when a worker died.
        notes: a folder for a note of the job that this process is at. A run that finds one, because the process before
            it died there, does that job in a process of its own.

    Raises:
        ShardError: a job killed its worker in every try, and no single row of it is to blame.
    """
    jobs = iter(jobs)
    first = list(islice(jobs, max(2, executor.workers)))
    if not first:
        return
    jobs = chain(first, jobs)
    if executor.kind == "local" and (executor.workers == 1 or len(first) < 2):
        _stay(setup, work, jobs, executor, advance, notes)
        return
    with _team(setup, work, min(executor.workers, len(first)), executor) as team:
        _Foreman(team, executor.retries, advance).run(jobs)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch uses one thread within."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _team(setup: Callable, work: Callable, size: int, executor: ExecutorConfig) -> Iterator[Team]:
    if executor.kind == "ray":
        from vall_e.corpus.ray_workers import RayTeam

        team: Team = RayTeam(setup, work, size, executor.ray)
    else:
        team = LocalTeam(setup, work, size)
    try:
        yield team
    finally:
        team.close()


def _stay(
    setup: Callable, work: Callable, jobs: Iterable[Any], executor: ExecutorConfig, advance: Advance,
    notes: Path | None,
) -> None:  # fmt: skip
    """All jobs in this process but the one that the process before this one died at."""
    note = None if notes is None else notes / NOTE
    suspect = note.read_text(encoding="utf-8") if note is not None and note.is_file() else None
    here = _Here(setup, work)
    foreman = _Foreman(here, executor.retries, advance)
    here.tell = foreman.tell
    with one_thread():
        for number, job in enumerate(jobs):
            name = _name(job, number)
            if name == suspect:
                with _team(setup, work, 1, executor) as team:
                    _Foreman(team, executor.retries, advance).run([job], number)
                note.unlink(missing_ok=True)
                continue
            if note is not None:
                write_text(note, name)
            try:
                foreman.run([job], number)
            finally:
                if note is not None:
                    note.unlink(missing_ok=True)


class _Here:
    """This process as a team of one, which does a job when it is waited for.

    Attributes:
        tell: called whenever the job gets on.
    """

    def __init__(self, setup: Callable, work: Callable) -> None:
        self.setup, self.work = setup, work
        self.tell: Callable[[], Any] = lambda: None
        self._state: list[Any] = []
        self._jobs: list[Any] = []
        self._count = 0

    def free(self) -> list[int]:
        return [] if self._jobs else [0]

    def give(self, slot: int, job: Any) -> None:
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[Outcome]:
        try:
            if not self._state:
                self._state.append(self.setup())
            self.work(self._state[0], self._jobs[0], self._advance)
            return [Outcome(0, self._count)]
        except Exception as error:
            return [Outcome(0, error=error)]
        finally:
            self._jobs.clear()
            self._count = 0

    def _advance(self, count: int) -> None:
        self._count += count
        self.tell()

    def counts(self) -> int:
        return self._count

    def close(self) -> None:
        pass


def _name(job: Any, number: int) -> str:
    return job.name if isinstance(job, Shard) else f"job {number}"


@dataclass(frozen=True)
class _Task:
    job: Any
    name: str
    tries: int = 0


class _Foreman:
    """Hands jobs to a team, again where one failed, and finds the rows that fail."""

    def __init__(self, team: Team, retries: int, advance: Advance) -> None:
        self.team, self.retries, self.advance = team, retries, advance
        self.busy: dict[int, _Task] = {}
        self.finished, self.told = 0, 0

    def run(self, jobs: Iterable[Any], first: int = 0) -> None:
        """Do ``jobs``, of which the first is number ``first``.

        Rows that kill are looked for when all else is done, rows that raise errors at once: what fails everywhere
        ends the run early.
        """
        fresh = (_Task(job, _name(job, number)) for number, job in enumerate(jobs, first))
        again: deque[_Task] = deque()
        failed: list[tuple[_Task, Outcome]] = []
        while True:
            if all(outcome.error is None for _, outcome in failed):
                for slot in self.team.free():
                    task = again.popleft() if again else next(fresh, None)
                    if task is None:
                        break
                    self._give(slot, task)
            if self.busy:
                for task, outcome in self._ended():
                    if outcome.reason is None:
                        self.finished += outcome.count
                    elif task.tries < self.retries and not isinstance(outcome.error, ValueError):
                        again.append(replace(task, tries=task.tries + 1))
                    elif outcome.error is not None and not _may_be_a_row(task, outcome.error):
                        _fail(task, outcome)
                    else:
                        failed.append((task, outcome))
                self.tell()
            elif failed:
                self._finish_without_culprits(*failed.pop(0))
            else:
                break

    def _give(self, slot: int, task: _Task) -> None:
        self.busy[slot] = task
        self.team.give(slot, task.job)

    def _ended(self) -> list[tuple[_Task, Outcome]]:
        return [(self.busy.pop(outcome.slot), outcome) for outcome in self.team.wait(TELL_SECONDS)]

    def tell(self) -> None:
        """Say how much was done since the last time."""
        now = self.finished + self.team.counts()
        if now != self.told:
            self.advance(now - self.told)
        self.told = now

    def _finish_without_culprits(self, task: _Task, outcome: Outcome) -> None:
        job, tries = task.job, f"killed its worker ({outcome.death}) in each of {self.retries + 1} tries"
        if not isinstance(job, Shard):
            raise ShardError(f"{task.name} {tries}")
        if empty := self._failure(replace(job, rows=[], trial=True), task):
            _fail(task, empty, f"a worker dies ({empty.death}) before it has done anything: nothing can be done")
        poisoned = list(self._culprits(job.rows, job, task))
        if not poisoned or (outcome.error is not None and len(poisoned) == len(job.rows) > 1):
            _fail(
                task, outcome,
                f"{tries}, but no row of it does so alone: it may need more memory than there is, so take smaller "
                "shards or fewer workers",
            )  # fmt: skip
        culprits = {id(row) for row, _ in poisoned}
        rest = [row for row in job.rows if id(row) not in culprits]
        again = replace(job, rows=rest, poisoned=(*job.poisoned, *poisoned))
        if still := self._failure(again, task):
            _fail(task, still, f"kills its worker ({still.death}) even without the {len(poisoned)} rows that do so")
        self.finished += len(poisoned)
        self.tell()

    def _culprits(self, rows: Sequence[dict[str, Any]], job: Shard, task: _Task) -> Iterator[tuple[dict, str]]:
        """The rows that fail alone, and why, by halves; all together are known to fail."""
        found, parts = 0, _halves(rows) if len(rows) > 1 else [rows]
        while parts:
            part = parts.pop()
            outcome = self._failure(replace(job, rows=part, trial=True), task)
            if outcome is None:
                continue
            if len(part) > 1:
                parts += _halves(part)
                continue
            found += 1
            if found > MAX_POISONED:
                _fail(
                    task, outcome,
                    f"more than {MAX_POISONED} rows kill a worker ({outcome.death}), one is {part[0].get('id')}: mend "
                    "what they have in common",
                )  # fmt: skip
            yield part[0], outcome.reason

    def _failure(self, job: Shard, task: _Task) -> Outcome | None:
        """How every try at ``job``, of ``task``, fails; None where one does not. Trials of many rows have one try."""
        outcome = None
        for _ in range(1 if job.trial and len(job.rows) > 1 else self.retries + 1):
            self._give(self.team.free()[0], replace(task, job=job))
            while not (ended := self._ended()):
                self.tell()
            [(_, outcome)] = ended
            if outcome.reason is None:
                if not job.trial:
                    self.finished += outcome.count
                return None
            if outcome.error is not None and not _may_be_a_row(task, outcome.error):
                _fail(task, outcome)
        return outcome


def _may_be_a_row(task: _Task, error: Exception) -> bool:
    """Whether one row may be what raises ``error``, and not the machine."""
    return isinstance(task.job, Shard) and not isinstance(error, OSError | MemoryError)


def _halves(rows: Sequence[Any]) -> list[Sequence[Any]]:
    """The second and the first, which is the next to be taken from a stack."""
    return [rows[len(rows) // 2 :], rows[: len(rows) // 2]]


def _fail(task: _Task, outcome: Outcome, killed: str = "") -> NoReturn:
    """Raise the error of ``outcome`` as itself, or where a worker died a ShardError that says ``killed``."""
    if outcome.error is None:
        raise ShardError(f"{task.name} {killed}")
    outcome.error.add_note(f"at {task.name}")
    if not outcome.trace:
        raise outcome.error
    raise outcome.error from WorkerTraceback(f"\n{outcome.trace}")
