"""A local Ray cluster of two: the bytes of one process, dead actors replaced, errors as themselves."""

from __future__ import annotations

import shutil
from functools import partial

import pytest

from tests.corpus import jobs
from tests.corpus.test_encode import Corpus, contents
from tests.corpus.test_screen import Corpus as Screened
from tests.corpus.test_screen import bytes_of
from vall_e.config import ConfigError, parse_params
from vall_e.corpus.encode import encode
from vall_e.corpus.executor import Shard, run_shards
from vall_e.preparation import ExecutorConfig

pytestmark = pytest.mark.slow
TWO = ExecutorConfig(kind="ray", workers=2)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One for all tests: the executor takes a cluster that this process is already part of, and leaves it there."""
    ray = pytest.importorskip("ray")
    from vall_e.corpus import ray_workers

    ray_workers._connect(ray_workers._import(), 2, TWO.ray)
    yield
    ray.shutdown()


def test_the_bytes_of_one_process_of_two_and_of_a_ray_cluster_of_two_are_the_same(tmp_path):
    corpus = Corpus(tmp_path, 8)
    expected = contents(corpus.run("one")[0])
    assert contents(corpus.run("two", workers=2)[0]) == expected
    params = {"executor": TWO.model_dump(), "encode": {"shard_size": 4, "batch_seconds": 2.0}}
    names = ("manifest.parquet", "phones.parquet", "codec", "ray", ".work")
    encode(parse_params(params), *(tmp_path / name for name in names), progress=False)
    assert contents(tmp_path / "ray") == expected


def test_measures_of_a_ray_cluster_are_those_of_one_process(tmp_path):
    corpus = Screened(tmp_path)
    corpus.run("one")
    shutil.rmtree(tmp_path / "work")
    corpus.run("ray", executor=TWO.model_dump())
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "one")


def test_workers_without_room_are_given_nothing_and_those_with_room_do_it_all(tmp_path):
    """Two cores; three actors of one core, then two of two."""
    for workers, cores in ((3, 1.0), (2, 2.0)):
        folder, told = tmp_path / str(workers), []
        folder.mkdir()
        where = ExecutorConfig(kind="ray", workers=workers, ray={"cpus_per_worker": cores})
        run_shards(partial(jobs.setup, 1), partial(jobs.killed_once, folder), range(5), where, told.append)
        assert sorted(path.name for path in folder.glob("job-*")) == [f"job-{i}" for i in range(5)] and sum(told) == 10


def test_no_room_for_any_worker_is_an_error_that_says_what_there_is():
    where = ExecutorConfig(kind="ray", workers=2, ray={"cpus_per_worker": 3, "wait_seconds": 2})
    said = r"in 2 s: each asks for 3 CPUs and 0 GPUs of a node, and the nodes have 2 CPUs .* lower cpus_per_worker"
    with pytest.raises(ValueError, match=said):
        run_shards(jobs.none, jobs.kill_one, [0, 2], where, print)


def test_an_actor_that_ray_ended_for_want_of_memory_is_a_dead_worker(monkeypatch):
    from vall_e.corpus.ray_workers import RayTeam

    team = RayTeam(jobs.none, jobs.kill_one, 1, TWO.ray)

    def evicted(reference):
        raise team.ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")

    team.give(team.free()[0], 0)
    with monkeypatch.context() as patch:
        patch.setattr(team.ray, "get", evicted)
        [outcome] = team.wait(60)
    assert outcome.reason == "its worker died: its node ran out of memory"
    team.give(team.free()[0], 0)  # a fresh one
    assert team.wait(60)[0].reason is None
    team.close()


def test_a_killed_actor_is_replaced_and_rows_that_kill_are_left_out(tmp_path):
    told = []
    run_shards(partial(jobs.setup, 1), partial(jobs.killed_once, tmp_path), [0, 1, 2], TWO, told.append)
    assert {p.name: p.read_text() for p in tmp_path.glob("job-*")} == {f"job-{i}": str(10 + i) for i in range(3)}
    assert (tmp_path / "killed").exists() and sum(told) == 6
    shard = Shard("a", [{"id": i} for i in ("1", "bad", "2")])
    run_shards(partial(jobs.setup, 1), partial(jobs.ray_rows_that_kill, tmp_path), [shard], TWO, told.append)
    assert (tmp_path / "a").read_text() == "1 2 - bad"


def test_an_error_in_an_actor_is_raised_as_itself(tmp_path):
    with pytest.raises(ValueError, match="job -1 is impossible") as caught:
        run_shards(partial(jobs.setup, 7), partial(jobs.work, tmp_path), [1, -1, 2], TWO, lambda n: None)
    assert caught.value.__notes__ == ["at job 1"]


def test_resources_are_checked_when_parameters_are_read():
    with pytest.raises(ConfigError, match="executor.ray.gpus_per_worker"):
        parse_params({"executor": {"ray": {"gpus_per_worker": -1}}})
    with pytest.raises(ValueError, match="no such GPUs"):
        run_shards(jobs.none, jobs.kill_one, [0], ExecutorConfig(kind="ray", ray={"gpus_per_worker": 1}), print)
