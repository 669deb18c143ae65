"""A local Ray cluster of two: every stage that works on shards writes the bytes of one process and of two, dead actors
are replaced, errors are raised as themselves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.corpus import jobs, test_phonemize
from tests.corpus.test_encode import Corpus, contents
from tests.corpus.test_screen import Corpus as Screened
from tests.corpus.test_similar import Corpus as Compared
from tests.corpus.transcription import stand_ins
from vall_e.audio import resample
from vall_e.config import ConfigError, parse_params
from vall_e.corpus import demo, features
from vall_e.corpus import phonemize as phonemizing
from vall_e.corpus.executor import Shard, run_shards
from vall_e.corpus.schema import MANIFEST, MEASURES, TRANSCRIPTS, read_rows, write_table
from vall_e.corpus.transcribe import transcribe
from vall_e.corpus.transcription.checking import character_error_rate
from vall_e.preparation import DiariseConfig, ExecutorConfig, TranscribeConfig

pytestmark = pytest.mark.slow
TWO = ExecutorConfig(kind="ray", workers=2)
PLACES = {"one": ExecutorConfig(), "two": ExecutorConfig(workers=2), "ray": TWO}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One for all tests: the executor takes a cluster that this process is already part of, and leaves it there."""
    ray = pytest.importorskip("ray")
    from vall_e.corpus import ray_workers

    ray_workers._connect(ray_workers._import(), 2, TWO.ray)
    yield
    ray.shutdown()


def same_everywhere(stage: Callable[[Path, ExecutorConfig], object], folder: Path) -> dict[str, bytes]:
    """The files, by name, that ``stage`` writes into its folder, which are the same in all places."""
    written = {}
    for name, where in PLACES.items():
        stage(folder / name, where)
        written[name] = contents(folder / name)
    assert written["one"] and written["two"] == written["one"] and written["ray"] == written["one"]
    return written["one"]


def test_codes_copies_and_mixtures(tmp_path):
    corpus = Corpus(tmp_path, 8)
    settings = {"speeds": [0.9], "mixtures": {"overlap_db": [-1, 1]}}
    files = same_everywhere(lambda out, where: corpus.run(out.name, executor=where, **settings), tmp_path)
    assert {"shard-00000.parquet", "shard-00001.parquet", "mixtures-00000.parquet"} <= set(files)


def test_measures_with_dnsmos(tmp_path):
    corpus = Screened(tmp_path)

    def stage(out, where):
        shutil.rmtree(tmp_path / "work", ignore_errors=True)  # measures outlive their run
        corpus.run(out.name, executor=where.model_dump(), quality={"min_dnsmos": 1.0})

    same_everywhere(stage, tmp_path)
    assert all(row["dnsmos"] >= 1.0 for row in read_rows(tmp_path / "ray/measures.parquet", MEASURES))


@pytest.mark.parametrize("feature", ["mfcc", "speaker", "codes"])
def test_similar_utterances(tmp_path, monkeypatch, feature):
    monkeypatch.setattr(features, "SHARD", 3)
    corpus = Compared(tmp_path)

    def stage(out, where):
        corpus.run(executor=where, feature=feature)
        out.mkdir()
        (tmp_path / "similar.parquet").rename(out / "similar.parquet")

    same_everywhere(stage, tmp_path)


def test_phones(tmp_path, monkeypatch):
    monkeypatch.setattr(phonemizing, "SHARD", 3)
    manifest = test_phonemize.table(tmp_path, test_phonemize.TEXTS)
    same_everywhere(lambda out, where: test_phonemize.run(tmp_path, manifest, out.name, executor=where), tmp_path)


def test_words_their_alignment_and_who_speaks(tmp_path):
    """The three passes of transcribe, over recordings with a text and without."""
    manifest, _ = stand_ins.corpus(tmp_path, ["one two", None] * 6)
    ear = stand_ins.Ear(dict.fromkeys(range(3200, 3212), "one two"))
    models = {"aligner": aligner, "diariser": diariser}
    settings = {"shard_size": 4, "align": {"en": "a"}, "diarise": {"model": "d"}, "min_seconds": 0.01}

    def stage(out, where):
        kept, _, figures = stand_ins.run(tmp_path, manifest, ear, executor=where, models=models, **settings)
        assert figures["word_times"] == {"en": "a"} and {row["speaker"] for row in kept.values()} == {"s-S0", "s-S1"}
        (tmp_path / "out").rename(out)

    same_everywhere(stage, tmp_path)


def aligner(model: str, language: str, device: str) -> stand_ins.Shifted:
    return stand_ins.Shifted()


def diariser(config: DiariseConfig, device: str) -> stand_ins.Turns:
    return stand_ins.Turns(0.05)


def test_what_whisper_hears_of_speech_that_the_detector_finds(tmp_path, monkeypatch):
    """With as many threads in this process as there are cores: a worker has one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    said = ["seven three nine", "open the green window", "look at the black table", "one six zero five"]
    rows = []
    for index, text in enumerate(said):
        wav, rate = demo.speak(demo.Voice(name="a", voice="en-us+edward", rate=140, gap=4), text)
        path = tmp_path / f"u{index}.wav"
        rows.append(stand_ins.recording(path.stem, path, resample(wav, rate, 16_000), text if index % 2 else None))
    manifest = write_table(rows, MANIFEST, tmp_path / "manifest.parquet")
    config = TranscribeConfig(align="off", verify_fraction=1.0, max_cer=0.5, shard_size=2)
    work = tmp_path / "work"
    same_everywhere(lambda out, where: transcribe(config, manifest, out, work, where, progress=False), tmp_path)
    kept = read_rows(tmp_path / "ray/transcripts.parquet", TRANSCRIPTS)
    assert [row["origin"] for row in kept] == ["recognised", "given"] * 2
    assert character_error_rate(" ".join(said), " ".join(row["recognised"] or row["text"] for row in kept), "en") < 0.1


class DeadlyEar(stand_ins.Ear):
    """Ends its process at recording 5."""

    def hear(self, clips, *args, **how):
        if any(len(wav) == 3205 for wav, _ in clips):
            os._exit(3)
        return super().hear(clips, *args, **how)


def test_a_recording_that_ends_its_actors_is_a_reject_and_the_others_are_heard(tmp_path):
    manifest, ids = stand_ins.corpus(tmp_path, ["one"] * 8)
    ear = DeadlyEar(dict.fromkeys(range(3200, 3208), "one"))
    kept, rejects, _ = stand_ins.run(tmp_path, manifest, ear, executor=TWO, shard_size=4)
    assert set(kept) == {*ids} - {"u005"} and rejects["u005"]["rule"] == "poisoned"
    assert rejects["u005"]["value"] == "its worker died: its process or its node ended"


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
