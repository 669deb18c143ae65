"""Shards over processes: every job once, progress told, tries again, killers found, one thread each."""

from __future__ import annotations

from functools import partial
from multiprocessing import active_children

import pytest
import torch

from tests.corpus import jobs
from tests.processes import exit_code
from vall_e.corpus import executor as module
from vall_e.corpus.executor import NOTE, Shard, ShardError, run_shards
from vall_e.preparation import ExecutorConfig


def _shard(name: str, *ids: str) -> Shard:
    return Shard(name, [{"id": i} for i in ids])


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_with_the_state_of_its_process(tmp_path, workers):
    told, where = [], ExecutorConfig(workers=workers)
    threads = torch.get_num_threads()
    run_shards(partial(jobs.setup, 7), partial(jobs.work, tmp_path), iter(range(5)), where, told.append)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {str(i): f"{70 + i} 1" for i in range(5)}
    assert sum(told) == 10
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_job_is_raised_as_itself_and_names_the_shard(tmp_path, workers):
    where, others = ExecutorConfig(workers=workers), set(active_children())  # of other tests in this process
    with pytest.raises(ValueError, match="job -1 is impossible") as caught:
        run_shards(partial(jobs.setup, 7), partial(jobs.work, tmp_path), [1, -1, 2], where, lambda n: None)
    assert caught.value.__notes__ == ["at job 1"]
    assert set(active_children()) <= others, "workers outlived the error"


def test_without_jobs_nothing_is_set_up():
    run_shards(lambda: pytest.fail("set up for nothing"), jobs.work, [], ExecutorConfig(), lambda n: None)


def test_no_more_jobs_are_taken_than_there_are_idle_workers(tmp_path):
    """The team here does jobs when it is waited for: whatever was taken before that was waiting in memory."""
    taken, given = [], []

    class Slow:
        def free(self):
            return [slot for slot in range(2) if slot not in dict(given)]

        def give(self, slot, job):
            given.append((slot, job))

        def wait(self, seconds):
            assert len(taken) - done <= 2
            return [module.Outcome(given.pop(0)[0])]

        def counts(self):
            return 0

    def endless():
        for job in range(20):
            taken.append(job)
            yield job

    done = 0
    foreman = module._Foreman(Slow(), 1, lambda n: None)
    ended = foreman._ended

    def counted():
        nonlocal done
        out = ended()
        done += len(out)
        return out

    foreman._ended = counted
    foreman.run(endless())
    assert done == len(taken) == 20


def test_a_shard_whose_worker_was_killed_is_done_again_and_progress_is_right(tmp_path):
    told = []
    work = partial(jobs.killed_once, tmp_path)
    run_shards(partial(jobs.setup, 1), work, [0, 1, 2], ExecutorConfig(workers=2), told.append)
    assert {p.name: p.read_text() for p in tmp_path.glob("job-*")} == {f"job-{i}": str(10 + i) for i in range(3)}
    assert (tmp_path / "killed").exists() and sum(told) == 6


def test_a_worker_that_always_dies_names_shard_and_signal():
    with pytest.raises(ShardError, match=r"job 1 killed its worker \(SIGKILL\) in each of 1 tries"):
        run_shards(jobs.none, jobs.kill_one, [0, 1, 2], ExecutorConfig(workers=2, retries=0), lambda n: None)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_storage_that_did_not_answer_is_asked_again(tmp_path, workers):
    told = []
    where = ExecutorConfig(workers=workers)
    run_shards(partial(jobs.setup, 1), partial(jobs.storage_away_once, tmp_path), [0, 1, 2], where, told.append)
    assert len(list(tmp_path.glob("job-*"))) == 3 and sum(told) == 3
    with pytest.raises(OSError, match="did not answer"):
        run_shards(partial(jobs.setup, 1), jobs.always_away, [0, 1], where, told.append)


def test_rows_that_kill_every_worker_are_found_and_the_rest_is_done(tmp_path):
    shards = [_shard("a", "1", "2", "bad1", "3", "bad2", "4", "5"), _shard("b", "6", "7")]
    told = []
    run_shards(
        partial(jobs.setup, 1), partial(jobs.rows_that_kill, tmp_path), shards, ExecutorConfig(workers=2), told.append
    )
    assert (tmp_path / "a").read_text() == "1 2 3 4 5 - bad1 bad2"
    assert (tmp_path / "b").read_text() == "6 7 -"
    assert sum(told) == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_that_raise_in_every_try_are_found_and_the_rest_is_done(tmp_path, workers):
    shards = [_shard("a", "1", "badr", "2", "3", "badv", "4"), _shard("b", "5", "6"), _shard("c", "badr")]
    told, work = [], partial(jobs.rows_that_raise, tmp_path)
    run_shards(partial(jobs.setup, 1), work, shards, ExecutorConfig(workers=workers), told.append)
    assert (tmp_path / "a").read_text() == "1 2 3 4 - badr: RuntimeError: a size badv: ValueError: a size"
    assert (tmp_path / "b").read_text() == "5 6 -"
    assert (tmp_path / "c").read_text() == "- badr: RuntimeError: a size"
    assert sum(told) == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_no_single_row_are_raised_as_themselves(tmp_path, workers):
    def run(setup, work, *shards):
        run_shards(setup, work, shards, ExecutorConfig(workers=workers), lambda n: None)

    ready, raising = partial(jobs.setup, 1), partial(jobs.rows_that_raise, tmp_path)
    pair = _shard("a", "1", "2", "3"), _shard("b", "4", "5", "6")
    with pytest.raises(RuntimeError, match="no model"):
        run(partial(jobs.model_away, None), raising, *pair)
    with pytest.raises(OSError, match="No space left") as caught:
        run(ready, jobs.disk_full, *pair)
    assert caught.value.__notes__[0] in ("at a", "at b")
    with pytest.raises(RuntimeError, match="too much at once"):
        run(ready, jobs.raises_together, *pair)
    with pytest.raises(RuntimeError, match="of nothing"):  # every row does it
        run(ready, raising, _shard("a", "badr1", "badr2"), _shard("b", "4"))
    with pytest.raises(RuntimeError, match="of nothing"):  # more than eight do it
        run(ready, raising, _shard("a", "1", *(f"badr{i}" for i in range(9))), _shard("b", "4"))


def test_a_shard_that_kills_only_as_a_whole_says_so_and_a_broken_worker_blames_no_row():
    where = ExecutorConfig(workers=2, retries=0)
    shards = [_shard("a", "1", "2", "3", "4"), _shard("b", "5")]
    with pytest.raises(ShardError, match=r"a killed its worker .* more memory"):
        run_shards(jobs.none, jobs.kills_together, shards, where, lambda n: None)
    with pytest.raises(ShardError, match="before it has done anything"):
        run_shards(partial(jobs.dead_on_arrival, 1), jobs.kills_together, shards, where, lambda n: None)


def test_the_shard_that_ended_this_process_is_done_in_another_by_the_next_run(tmp_path):
    shards = [_shard("a", "1"), _shard("b", "2", "bad", "3")]
    notes = tmp_path / "work"
    notes.mkdir()
    run = partial(run_shards, partial(jobs.setup, 1), partial(jobs.rows_that_kill, tmp_path), shards, ExecutorConfig())
    assert exit_code(run, jobs.untold, notes) == 3
    assert (notes / NOTE).read_text() == "b"
    run(lambda n: None, notes)
    assert (tmp_path / "b").read_text() == "2 3 - bad" and not list(notes.iterdir())
