"""Sweeps and searches on a toy pipeline: real experiments of DVC, one real MLflow store."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from pipelines.experiment import experiment_names
from pipelines.search import parse_space
from pipelines.search_flow import open_study, search
from pipelines.sweep import SweepFailed
from pipelines.sweep_flow import sweep
from vall_e.config import ConfigError

pytestmark = pytest.mark.slow
_STAGE = """\
import json, pathlib, sys
from stages.recorder import Recorder
from vall_e.config import load_params
params = load_params()
if params.train.max_steps == 13:
    sys.exit("train: error: thirteen steps")
with Recorder(params.tracking, pathlib.Path("."), "train", params.profile) as run:
    run.params({"train": {"max_steps": params.train.max_steps}})
    loss = (params.train.max_steps - 6) ** 2 + params.train.lr
    run.metrics({"loss": loss})
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/train.json").write_text(json.dumps({"loss": loss}))
"""
_PIPELINE = f"""\
stages:
  train:
    cmd: {sys.executable} stage.py
    deps: [stage.py]
    params: [train.max_steps, train.lr]
    metrics: [metrics/train.json]
"""


@pytest.fixture(scope="module", autouse=True)
def prefect_api():
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def toy(tmp_path, monkeypatch, project_root) -> Path:
    """A committed DVC project of one stage with the project's own params.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "n")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "e@localhost")
    for name in ("params.yaml", "conf"):
        source = project_root / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    Path("stage.py").write_text(_STAGE)
    Path("dvc.yaml").write_text(_PIPELINE)
    Path(".gitignore").write_text(".work/\n/metrics/\n/mlflow.db*\n")
    subprocess.run(["git", "init", "-q", "."], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", "one"], check=True)
    return tmp_path


def _records(root: Path) -> dict[str, dict[str, str]]:
    """Tags of the MLflow runs in the project's store, by the number of steps."""
    with sqlite3.connect(root / "mlflow.db") as store:
        steps = dict(store.execute("select run_uuid, value from params where key = 'train.max_steps'").fetchall())
        return {
            value: dict(store.execute("select key, value from tags where run_uuid = ?", [run]).fetchall())
            for run, value in steps.items()
        }


def _stores(root: Path) -> list[Path]:
    return sorted(root.rglob("mlflow.db"))


def test_a_sweep_is_experiments_in_one_store_and_goes_on(toy):
    before = Path("params.yaml").read_text()
    with pytest.raises(SweepFailed, match="1 of 2 experiments failed"):
        sweep({"train.max_steps": [5, 13]}, figures=["train.loss"])
    rows = sweep({"train.max_steps": [5, 7]}, figures=["train.loss"])
    assert [(row["train.max_steps"], row["state"]) for row in rows] == [(5, "was there"), (7, "ran")]
    assert [row["train.loss"] for row in rows] == pytest.approx([1.0, 1.0], abs=0.1)
    assert experiment_names(toy) == {row["experiment"] for row in rows}
    assert _stores(toy) == [toy / "mlflow.db"]
    tags = _records(toy)
    assert set(tags) == {"5", "7"} and {each["sweep"] for each in tags.values()} == {"sweep"}
    assert {each["dvc.experiment"] for each in tags.values()} == experiment_names(toy)
    assert all(each["prefect.flow_run"] for each in tags.values())
    tried = {each["mlflow.runName"].split(": ")[1] for each in tags.values()}
    assert tried == {"train.max_steps=5", "train.max_steps=7"}
    assert Path("params.yaml").read_text() == before


def test_dvcs_queue_by_hand_writes_to_the_same_store(toy):
    path = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    dvc = [sys.executable, "-m", "dvc", "exp", "run"]
    subprocess.run([*dvc, "--queue", "-S", "train.max_steps=3,4"], env=path, check=True, timeout=200)
    subprocess.run([*dvc, "--run-all"], env=path, check=True, timeout=300)
    assert len(experiment_names(toy)) == 2
    assert _stores(toy) == [toy / "mlflow.db"]
    assert {each["dvc.experiment"] for each in _records(toy).values()} == experiment_names(toy)


def test_a_search_goes_on_where_it_was_stopped(toy):
    space = ["train.max_steps=int:1:9"]
    study = open_study(toy, "search", "minimize", {"goal": "train.loss", "space": space})
    left = study.ask(parse_space(space))  # what a killed search leaves behind
    best = search(space, "train.loss", trials=2)
    trials = open_study(toy, "search", "minimize", {"goal": "train.loss", "space": space}).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    assert trials[0].params == left.params
    assert best["value"] == min(trial.value for trial in trials)
    assert [t.value for t in trials] == pytest.approx([(t.params["train.max_steps"] - 6) ** 2 for t in trials], abs=0.1)
    assert experiment_names(toy) == {"search-0", "search-1"}
    with pytest.raises(ConfigError, match="looked for"):
        search(space, "train.loss", "maximize", trials=3)
