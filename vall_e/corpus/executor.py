"""Work over shards in this process or in several, with the same results.

Every process computes with one thread, because sums of floats depend on how many threads share them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch

State = TypeVar("State")
Job = TypeVar("Job")
Advance = Callable[[int], Any]


def run_shards(
    setup: Callable[[], State],
    work: Callable[[State, Job, Advance], None],
    jobs: Sequence[Job],
    workers: int,
    advance: Advance,
) -> None:
    """Do every job; the first error stops the rest and is raised.

    Args:
        setup: makes what a process needs once (a loaded model); picklable.
        work: does one job, calling ``advance(n)`` as it gets on; picklable. Its result is a file that it writes.
        jobs: picklable descriptions of shards.
        workers: processes; one, or a single job, stays in this process.
        advance: told in this process how much was done since the last call.
    """
    if workers == 1 or len(jobs) < 2:
        if jobs:
            with one_thread():
                state = setup()
                for job in jobs:
                    work(state, job, advance)
        return
    context = get_context("spawn")
    counter = context.Value("q", 0)
    told = 0
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _initialise, (setup, work, counter)) as pool:
        futures = {pool.submit(_do, job) for job in jobs}
        try:
            while futures:
                done, futures = wait(futures, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                now = counter.value
                advance(now - told)
                told = now
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch uses one thread within."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_process: dict[str, Any] = {}


def _initialise(setup: Callable[[], Any], work: Callable[..., None], counter: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _process.update(state=setup(), work=work, counter=counter)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its pool, whose processes would wait for work for ever."""
    parent_process().join()
    os._exit(1)


def _advance(count: int) -> None:
    counter = _process["counter"]
    with counter.get_lock():
        counter.value += count


def _do(job: Any) -> None:
    _process["work"](_process["state"], job, _advance)
