"""MLflow records on a temporary SQLite store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages import lineage, origin, tracking
from stages.recorder import Recorder, TrackingError
from vall_e.config import TrackingConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The folder that holds one database for all tests here: making one takes seconds. A test has its experiment."""
    return tmp_path_factory.mktemp("tracked")


def _of(config: TrackingConfig, root: Path):
    """The experiment's runs, oldest first, and the client."""
    client, experiment = tracking.open_store(config, root)
    return sorted(client.search_runs([experiment]), key=lambda run: run.info.start_time), client


def test_processes_killed_and_started_at_once_share_one_new_database(root, project_root):
    script = (
        "import sys; from pathlib import Path; from stages import tracking; from vall_e.config import TrackingConfig\n"
        "tracking.start(TrackingConfig(), Path(sys.argv[1]), 'ingest', 'demo').close()"
    )
    command, fresh = [sys.executable, "-c", script, str(root)], root / ".work" / "mlflow-new.db"
    killed = subprocess.Popen(command, cwd=project_root)
    while not (fresh.is_file() and fresh.stat().st_size > 30_000):  # some tables of many
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert fresh.is_file() and not (root / "mlflow.db").exists()
    both = [subprocess.Popen(command, cwd=project_root) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    runs, client = _of(TrackingConfig(), root)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert [e.name for e in client.search_experiments() if e.experiment_id != "0"] == ["vall-e"]
    assert (root / "mlflow.db").is_file() and not fresh.exists()


def test_names_and_numbers():
    figures = {
        "kept": 3,
        "ok": True,
        "rejected": {"short!": 2},
        "wer": {"model": {"value": 0.5}},
        "word": "x",
        "no": None,
    }
    flat = {"eval.kept": 3.0, "eval.rejected.short_": 2.0, "eval.wer.model.value": 0.5}
    assert tracking.numbers(figures, "eval.") == flat


def test_the_default_store_is_absolute_and_in_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking.store_uri(TrackingConfig(), Path(".")) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert tracking.store_uri(TrackingConfig(uri="http://localhost:1"), tmp_path) == "http://localhost:1"


def test_artifacts_are_beside_the_database_whoever_makes_the_experiment(root, tmp_path, monkeypatch):
    """As in the workspace of a new voice, whose ``tracking.uri`` is the project's own store."""
    monkeypatch.chdir(tmp_path)
    Path("figures.json").write_text("{}")
    config = TrackingConfig(uri=tracking.store_uri(TrackingConfig(), root), experiment="adapted")
    for purpose in ("model", "data"):
        run = tracking.start(config, Path("."), "train", "demo", purpose)
        run.artifact("figures.json")
        run.close()
        place = Path(run.client.get_run(run.id).info.artifact_uri.removeprefix("file://"))
        assert (place / "figures.json").is_file() and place.is_relative_to(root / "mlartifacts")
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]


def test_a_chain_of_stages_is_linked_and_the_training_run_is_the_parent(root, tmp_path):
    config, digest = TrackingConfig(experiment="chain"), "d1" * 32
    figures = tmp_path / "figures.json"
    figures.write_text("{}")
    encode = tracking.start(config, root, "encode", "demo", "data")
    encode.params({"encode": {"speeds": [0.9], "trim_db": None}})
    encode.wrote("data/encode", digest, "d1.dir")
    encode.close()
    train = tracking.start(config, root, "train", "demo")
    train.read("data/encode", digest)
    train.metrics({"loss": 3.0}, 1)
    train.metrics({"loss": 2.0}, 2)
    train.artifact(figures)
    train.trained("demo")
    train.close()
    evaluate = tracking.start(config, root, "evaluate", "demo", training_run=train.id)
    evaluate.parent_metrics({"wer": {"model": 0.2}}, "eval.")
    evaluate.artifact(figures, "eval", parent=True)
    evaluate.close()
    cached = tracking.record_cached(config, root, "encode", "demo", {"kept": 4}, {"data/encode": digest}, "data")

    runs, client = _of(config, root)
    trained, scored = runs
    made, skipped = _of(TrackingConfig(experiment="chain-data"), root)[0]
    assert made.data.params == {"encode.speeds": "[0.9]", "encode.trim_db": "None"}
    assert (made.data.tags["stage"], made.data.tags["profile"]) == ("encode", "demo")
    assert trained.data.tags["input.data/encode"] == made.data.tags["output.data/encode"]
    assert trained.data.tags["made_by.data/encode"] == made.info.run_id
    assert trained.inputs.dataset_inputs[0].dataset.name == "data/encode"
    assert trained.data.metrics == {"loss": 2.0, "eval.wer.model": 0.2}
    assert [metric.value for metric in client.get_metric_history(train.id, "loss")] == [3.0, 2.0]
    assert {item.path for item in client.list_artifacts(train.id)} == {"figures.json", "eval"}
    assert list((root / "mlartifacts").rglob("figures.json"))
    assert scored.data.tags["training_run"] == scored.data.tags["mlflow.parentRunId"] == train.id
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [run.info.run_id for run in lineage.ancestors(client, train.id)] == [encode.id]
    assert [run.info.run_id for run in lineage.trainings_of(client, made)] == [train.id]
    assert skipped.info.run_id == cached and skipped.data.metrics == {"kept": 4.0}
    assert skipped.data.tags["cached"] == "true" and skipped.data.tags["cached_from"] == made.info.run_id


def test_a_model_from_elsewhere_has_no_parent_here(root):
    config = TrackingConfig(experiment="elsewhere")
    run = tracking.start(config, root, "score", "demo", training_run="0" * 32)
    run.parent_metrics({"similarity": 0.8}, "score.")
    run.close("ValueError: no", False)
    (closed,), _ = _of(config, root)
    assert "training_run" not in closed.data.tags
    assert closed.info.status == "FAILED" and closed.data.tags["error"] == "ValueError: no"


def test_the_recorder_records_from_a_process_of_its_own(root, tmp_path, project_root, monkeypatch):
    monkeypatch.chdir(project_root)
    config = TrackingConfig(experiment="recorder")
    with Recorder(config, root, "train", "demo") as run:
        run.params({"train": {"lr": 0.1}})
        run.log(3, {"loss": 1.5})
        run.wrote("models/voice", "e" * 64, "e.dir")
        known = run.id
    with pytest.raises(KeyboardInterrupt), Recorder(config, root, "train", "demo"):
        raise KeyboardInterrupt
    (done, stopped), client = _of(config, root)
    assert done.info.run_id == known and done.info.status == "FINISHED" and done.data.params == {"train.lr": "0.1"}
    assert [(m.step, m.value) for m in client.get_metric_history(known, "loss")] == [(3, 1.5)]
    assert stopped.info.status == "KILLED" and "KeyboardInterrupt" in stopped.data.tags["error"]


def test_the_load_of_the_machine_is_sampled_while_a_stage_works(root, project_root, monkeypatch):
    monkeypatch.chdir(project_root)
    config = TrackingConfig(experiment="load", system_seconds=0.5)
    with Recorder(config, root, "train", "demo") as run:
        run.log(1, {"loss": 1.0})
        assert run.id
        time.sleep(3)
    (done,), client = _of(config, root)
    loads = [m.value for m in client.get_metric_history(done.info.run_id, "system/cpu_utilization_percentage")]
    assert 2 <= len(loads) <= 7 and all(0 <= load <= 100 for load in loads)
    assert done.data.metrics["system/system_memory_usage_megabytes"] > 0 and done.data.metrics["loss"] == 1
    with Recorder(config.model_copy(update={"system_seconds": None}), root, "train", "demo") as run:
        time.sleep(1)
    (_, plain), _ = _of(config, root)
    assert plain.data.metrics == {}


def test_a_stage_killed_without_warning_is_closed_as_killed(root, project_root):
    config = TrackingConfig(experiment="killed")
    script = (
        "import sys, time; from pathlib import Path; from stages.recorder import Recorder\n"
        "from vall_e.config import TrackingConfig\n"
        "with Recorder(TrackingConfig(experiment='killed'), Path(sys.argv[1]), 'encode', 'demo') as run:\n"
        "    print(run.id, flush=True); time.sleep(600)"
    )
    stage = subprocess.Popen(
        [sys.executable, "-c", script, str(root)], cwd=project_root, stdout=subprocess.PIPE, text=True
    )
    run_id = stage.stdout.readline().strip()
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait()
    _, client = _of(config, root)
    until = time.monotonic() + 60
    while client.get_run(run_id).info.status == "RUNNING" and time.monotonic() < until:
        time.sleep(0.2)
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_store_that_cannot_be_opened_is_a_clear_error(tmp_path, project_root, monkeypatch):
    monkeypatch.chdir(project_root)
    (tmp_path / "file").touch()
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TrackingError, match="no record of encode.*check tracking.uri"):
        with Recorder(config, tmp_path, "encode", "demo"):
            pass


def test_the_commit_is_recorded(tmp_path):
    assert origin.git_state(tmp_path) == {}
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@localhost"]
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run(["git", "add", "a"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "one"], cwd=tmp_path, check=True)
    clean = origin.git_state(tmp_path)
    assert len(clean["mlflow.source.git.commit"]) == 40 and clean["git.changed"] == "false"
    (tmp_path / "a").write_text("2")
    assert origin.git_state(tmp_path)["git.changed"] == "true"
