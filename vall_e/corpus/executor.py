"""Work over shards in this process, in several, or on a Ray cluster, with the same results.

Every worker computes with one thread, because sums of floats depend on how many threads share them. A shard whose
worker died is done again by a fresh one; where a shard kills every worker, its rows are halved until the ones that do
it are found, and the shard is done without them (``Shard.poisoned``), so that one recording never stops a corpus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from vall_e.corpus.work import write_text
from vall_e.corpus.workers import LocalTeam, Outcome, Team, WorkerTraceback
from vall_e.preparation import ExecutorConfig

State = TypeVar("State")
Job = TypeVar("Job")
Advance = Callable[[int], Any]
POISONED = "poisoned"  # rule of the rejects that killed their worker
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
        poisoned: rows that were left out because each killed its worker alone, and how the worker died: rejects of
            rule ``POISONED``, which the work writes.
        trial: only to see whether a worker survives ``rows``; the work leaves no file.
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
    again. No more jobs are taken from ``jobs`` than there are idle workers.

    Args:
        setup: makes what a process needs once (a loaded model); picklable.
        work: does one job, calling ``advance(n)`` as it gets on; picklable. Its result is a file that it writes.
        jobs: picklable descriptions of shards; of type ``Shard`` where rows that kill a worker shall be left out.
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
    state: list[Any] = []
    with one_thread():
        for number, job in enumerate(jobs):
            name = _name(job, number)
            if name == suspect:
                with _team(setup, work, 1, executor) as team:
                    _Foreman(team, executor.retries, advance).run([job])
                note.unlink(missing_ok=True)
                continue
            if note is not None:
                write_text(note, name)
            try:
                _persist(setup, work, state, job, name, executor.retries, advance)
            finally:
                if note is not None:
                    note.unlink(missing_ok=True)


def _persist(
    setup: Callable, work: Callable, state: list[Any], job: Any, name: str, retries: int, advance: Advance
) -> None:
    for left in range(retries, -1, -1):
        told: list[int] = []

        def tell(count: int, told: list[int] = told) -> None:
            told.append(count)
            advance(count)

        try:
            if not state:
                state.append(setup())
            work(state[0], job, tell)
            return
        except Exception as error:
            advance(-sum(told))
            if isinstance(error, ValueError) or not left:
                error.add_note(f"at {name}")
                raise


def _name(job: Any, number: int) -> str:
    return job.name if isinstance(job, Shard) else f"job {number}"


@dataclass(frozen=True)
class _Task:
    job: Any
    name: str
    tries: int = 0


class _Foreman:
    """Hands jobs to a team, again where one failed, and finds the rows that kill."""

    def __init__(self, team: Team, retries: int, advance: Advance) -> None:
        self.team, self.retries, self.advance = team, retries, advance
        self.busy: dict[int, _Task] = {}
        self.finished, self.told = 0, 0

    def run(self, jobs: Iterable[Any]) -> None:
        fresh = (_Task(job, _name(job, number)) for number, job in enumerate(jobs))
        again: deque[_Task] = deque()
        killers: list[tuple[_Task, str]] = []
        while True:
            for slot in range(self.team.size):
                if slot not in self.busy:
                    task = again.popleft() if again else next(fresh, None)
                    if task is not None:
                        self._give(slot, task)
            if not self.busy:
                break
            for task, outcome in self._ended():
                if outcome.death is None and outcome.error is None:
                    self.finished += outcome.count
                elif task.tries < self.retries and not isinstance(outcome.error, ValueError):
                    again.append(replace(task, tries=task.tries + 1))
                elif outcome.death is not None:
                    killers.append((task, outcome.death))
                else:
                    _fail(task, outcome)
            self._tell()
        for task, death in killers:
            self._finish_without_killers(task, death)

    def _give(self, slot: int, task: _Task) -> None:
        self.busy[slot] = task
        self.team.give(slot, task.job)

    def _ended(self) -> list[tuple[_Task, Outcome]]:
        return [(self.busy.pop(outcome.slot), outcome) for outcome in self.team.wait(TELL_SECONDS)]

    def _tell(self) -> None:
        now = self.finished + self.team.counts()
        if now != self.told:
            self.advance(now - self.told)
        self.told = now

    def _finish_without_killers(self, task: _Task, death: str) -> None:
        job = task.job
        if not isinstance(job, Shard):
            raise ShardError(f"{task.name} killed its worker ({death}) in each of {self.retries + 1} tries")
        if self._dies(replace(job, rows=[], trial=True), task.name):
            raise ShardError(f"{task.name}: a worker dies ({death}) before it has done anything: nothing can be done")
        poisoned = list(self._killers(job.rows, job, task.name))
        if not poisoned:
            raise ShardError(
                f"{task.name} killed its worker ({death}) in each of {self.retries + 1} tries, but no row of it does "
                "so alone: it may need more memory than there is, so take smaller shards or fewer workers"
            )
        killers = {id(row) for row, _ in poisoned}
        rest = [row for row in job.rows if id(row) not in killers]
        again = replace(job, rows=rest, poisoned=(*job.poisoned, *poisoned))
        if death := self._dies(again, task.name):
            raise ShardError(f"{task.name} kills its worker ({death}) even without the {len(poisoned)} rows that do so")
        self.finished += len(poisoned)
        self._tell()

    def _killers(self, rows: Sequence[dict[str, Any]], job: Shard, name: str) -> Iterator[tuple[dict[str, Any], str]]:
        """The rows that kill a worker alone, and how, by halves; all together are known to kill."""
        found, parts = 0, _halves(rows) if len(rows) > 1 else [rows]
        while parts:
            part = parts.pop()
            death = self._dies(replace(job, rows=part, trial=True), name)
            if death is None:
                continue
            if len(part) > 1:
                parts += _halves(part)
                continue
            found += 1
            if found > MAX_POISONED:
                raise ShardError(
                    f"{name}: more than {MAX_POISONED} rows kill a worker ({death}), one is {part[0].get('id')}: "
                    "mend what they have in common"
                )
            yield part[0], death

    def _dies(self, job: Shard, name: str) -> str | None:
        """How the worker dies in every try at ``job``; None where it does not. Trials of many rows have one try."""
        death = None
        for _ in range(1 if job.trial and len(job.rows) > 1 else self.retries + 1):
            self._give(0, _Task(job, name))
            while not (ended := self._ended()):
                self._tell()
            task, outcome = ended[0]
            if outcome.error is not None:
                _fail(task, outcome)
            if outcome.death is None:
                if not job.trial:
                    self.finished += outcome.count
                return None
            death = outcome.death
        return death


def _halves(rows: Sequence[Any]) -> list[Sequence[Any]]:
    """The second and the first, which is the next to be taken from a stack."""
    return [rows[len(rows) // 2 :], rows[: len(rows) // 2]]


def _fail(task: _Task, outcome: Outcome) -> None:
    outcome.error.add_note(f"at {task.name}")
    raise outcome.error from WorkerTraceback(f"\n{outcome.trace}")
