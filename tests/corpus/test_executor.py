"""Shards over processes: every job once, progress told, the first error raised, one thread each."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from vall_e.corpus.executor import run_shards


def _setup(seed: int) -> int:
    return seed * 10


def _work(folder: Path, state: int, job: int, advance) -> None:
    if job < 0:
        raise ValueError(f"job {job} is impossible")
    advance(2)
    (folder / str(job)).write_text(f"{state + job} {torch.get_num_threads()}")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_with_the_state_of_its_process(tmp_path, workers):
    told = []
    threads = torch.get_num_threads()
    run_shards(partial(_setup, 7), partial(_work, tmp_path), list(range(5)), workers, told.append)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {str(i): f"{70 + i} 1" for i in range(5)}
    assert sum(told) == 10
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_job_is_raised_as_itself(tmp_path, workers):
    with pytest.raises(ValueError, match="job -1 is impossible"):
        run_shards(partial(_setup, 7), partial(_work, tmp_path), [1, -1, 2], workers, lambda n: None)


def test_without_jobs_nothing_is_set_up():
    run_shards(lambda: pytest.fail("set up for nothing"), _work, [], 1, lambda n: None)
