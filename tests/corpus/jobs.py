"""What the executor's tests let workers do. Torch is not imported here, so that workers start at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from vall_e.corpus.executor import Shard


def setup(seed: int) -> int:
    return seed * 10


def work(folder: Path, state: int, job: int, advance) -> None:
    if job < 0:
        raise ValueError(f"job {job} is impossible")
    import torch

    advance(2)
    (folder / str(job)).write_text(f"{state + job} {torch.get_num_threads()}")


def once(folder: Path, name: str) -> bool:
    """True at the first call of all processes."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def killed_once(folder: Path, state: int, job: int, advance) -> None:
    advance(1)
    if job == 1 and once(folder, "killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    advance(1)
    (folder / f"job-{job}").write_text(str(state + job))


def storage_away_once(folder: Path, state: int, job: int, advance) -> None:
    advance(1)
    if job == 1 and once(folder, "away"):
        raise OSError("the storage did not answer")
    (folder / f"job-{job}").write_text(str(state + job))


def always_away(state: int, job: int, advance) -> None:
    raise OSError("the storage did not answer")


def ray_rows_that_kill(folder: Path, state: int, job: Shard, advance) -> None:
    """As ``rows_that_kill``, where Ray does not say how a process ended."""
    rows_that_kill(folder, state, job, advance, death="its process or its node ended")


def rows_that_kill(folder: Path, state: int, job: Shard, advance, death: str = "exit code 3") -> None:
    for row in job.rows:
        if row["id"].startswith("bad"):
            os._exit(3)
        advance(1)
    if not job.trial:
        left = [row["id"] for row, how in job.poisoned if how == f"its worker died: {death}"]
        text = " ".join([*(row["id"] for row in job.rows), "-", *left])
        (folder / job.name).write_text(text)


def rows_that_raise(folder: Path, state: int, job: Shard, advance) -> None:
    for row in job.rows:
        if row["id"].startswith("bad"):
            raise {"v": ValueError, "r": RuntimeError}[row["id"][3]]("a size\nof nothing")
        advance(1)
    if not job.trial:
        left = [f"{row['id']}: {why}" for row, why in job.poisoned]
        (folder / job.name).write_text(" ".join([*(row["id"] for row in job.rows), "-", *left]))


def model_away(state: None) -> int:
    raise RuntimeError("no model")


def disk_full(state: int, job: Shard, advance) -> None:
    if not job.trial:
        raise OSError(28, "No space left on device")


def raises_together(state: int, job: Shard, advance) -> None:
    if len(job.rows) > 2:
        raise RuntimeError("too much at once")


def kills_together(state: int, job: Shard, advance) -> None:
    if len(job.rows) > 2:
        os._exit(3)


def dead_on_arrival(seed: int) -> int:
    os._exit(4)


def untold(count: int) -> None:
    pass


def none() -> None:
    return None


def kill_one(state: None, job: int, advance) -> None:
    if job == 1:
        os.kill(os.getpid(), signal.SIGKILL)
