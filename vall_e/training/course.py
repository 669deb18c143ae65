"""What a run has changed about itself: rates lowered after a rollback, batches halved for want of memory.

Kept beside the checkpoints and written before training goes on, so a run that is killed and started again takes the
same course. Rates are a function of the step and of this file alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vall_e.corpus.work import write_text
from vall_e.memory import oom_kills
from vall_e.regimen import RollbackConfig

MOST = 64  # pieces after which more are no help where nobody knows which batch did not fit


class Diverged(RuntimeError):
    """A step after which going on makes no sense.

    Args:
        step: the optimiser step, from 1.
        why: what was seen there.
    """

    def __init__(self, step: int, why: str) -> None:
        super().__init__(f"step {step}: {why}")
        self.step, self.why = step, why


class CourseError(ValueError):
    """Training cannot go on, whatever is tried."""


@dataclass(frozen=True)
class Rollback:
    """From ``step``, where ``why`` was seen, back to the checkpoint of ``start``."""

    step: int
    start: int
    why: str


@dataclass
class Course:
    """The changes of a run.

    Attributes:
        path: the file they are kept in.
        rollbacks: in the order in which they came.
        pieces: parts, taken one after the other, that every batch is cut into.
        running: what ``oom_kills`` said when the process that trains began; None: the last one ended by itself.
    """

    path: Path
    rollbacks: list[Rollback] = field(default_factory=list)
    pieces: int = 1
    running: tuple[str, int] | None = None

    @classmethod
    def load(cls, path: Path) -> Course:
        if not path.is_file():
            return cls(path)
        kept = json.loads(path.read_text(encoding="utf-8"))
        running = kept.get("running")
        return cls(path, [Rollback(**item) for item in kept["rollbacks"]], kept["pieces"], running and tuple(running))

    def save(self) -> None:
        facts = {"rollbacks": [asdict(item) for item in self.rollbacks], "pieces": self.pieces, "running": self.running}
        write_text(self.path, json.dumps(facts, indent=1) + "\n")

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Inside, training is. Where the system ended the last process that trained, for want of memory and so without
        a word, batches are taken in twice as many pieces from now on, which is said on stderr.

        Raises:
            CourseError: they were small pieces already.
        """
        now, before = oom_kills(), self.running
        if before and now and before[0] == now[0] and before[1] < now[1]:
            if self.pieces >= MOST:
                raise CourseError(
                    f"the system ended training for want of memory (OOM killer), with every batch in {self.pieces} "
                    "pieces: make the model smaller, end other programs, or set train.loader_workers 0"
                )
            self.pieces *= 2
            said = "the system ended the last process for want of memory (OOM killer), or one beside it"
            print(
                f"train: {said}: every batch is taken in {self.pieces} pieces from now on; the optimiser's step stays "
                "the same (train.batch_frames lower and train.accumulate higher would save the search)",
                file=sys.stderr,
                flush=True,
            )
            self.save()
        self._note(now)
        try:
            yield
        finally:
            self._note(None)

    def _note(self, running: tuple[str, int] | None) -> None:
        self.running = running
        with suppress(OSError):  # a full disk is said where something is lost by it
            self.save()

    def rate(self, step: int, config: RollbackConfig) -> float:
        """Factor on the rates of the step that follows ``step`` steps."""
        return config.factor ** self.count(step)

    def count(self, step: int) -> int:
        """Rollbacks that shape the step that follows ``step`` steps."""
        return sum(item.start <= step for item in self.rollbacks)

    def went_back_to(self, start: int) -> bool:
        return any(item.start == start for item in self.rollbacks)

    def roll_back(self, seen: Diverged, start: int, config: RollbackConfig) -> str:
        """Note that training goes back to the checkpoint of step ``start``.

        Returns:
            what to say about it.

        Raises:
            CourseError: it went back often enough.
        """
        if len(self.rollbacks) >= config.tries:
            raise CourseError(
                f"{seen} again, after {len(self.rollbacks)} rollbacks (train.rollback.tries): lower train.lr and "
                "train.muon_lr or raise train.warmup_steps; where it is always the same step, look at what is in its "
                "batch (train.rollback.spike null lets jumps pass, and the run go on)"
            ) from seen
        self.rollbacks.append(Rollback(seen.step, start, seen.why))
        return (
            f"train: {seen}: back to the checkpoint of step {start}, rates times {self.rate(start, config):g} "
            f"(rollback {len(self.rollbacks)} of {config.tries})"
        )

    def halve(self, shape: tuple[int, int], start: int) -> str:
        """Cut batches into twice as many pieces from now on.

        Args:
            shape: rows and positions of the batch that did not fit, or of the piece of it.
            start: step of the checkpoint that training goes on from.

        Returns:
            what to say about it.

        Raises:
            CourseError: it was one row.
        """
        rows, positions = shape
        if rows <= 1:
            raise no_room(positions)
        self.pieces *= 2
        return (
            f"train: out of memory with {rows} rows of {positions} positions: every batch is taken in {self.pieces} "
            f"pieces from now on, on from step {start}; the optimiser's step stays the same "
            f"(train.batch_frames lower and train.accumulate higher would save the search)"
        )


def no_room(positions: int) -> CourseError:
    """For one row of so many positions."""
    return CourseError(
        f"out of memory with one row of {positions} positions: shorten the longest (train.max_response_seconds, "
        "train.join.max_clips or max_seconds, train.prompt_seconds), make the model smaller, or share its weights "
        "between GPUs (train.strategy fsdp)"
    )
