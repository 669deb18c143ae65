"""What a sweep or a search would run, checked before anything runs."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.states import Completed

from pipelines import experiment, search_flow
from pipelines.experiment import check_points, experiment_name, overrides_of, said, varied
from pipelines.figures import figure, metric_rows, reject_rows
from pipelines.search import parse_space
from pipelines.sweep import grid_points, parse_grid, table
from stages.origin import TAGS, origin_tags, records_root
from vall_e.config import ConfigError


@pytest.fixture
def project(tmp_path, monkeypatch, project_root) -> Path:
    shutil.copy(project_root / "params.yaml", tmp_path)
    shutil.copytree(project_root / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@localhost"]
    for words in (["init", "-q", "."], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    return tmp_path


def test_a_grid_is_every_combination():
    grid = parse_grid(["codec.name=[mel, encodec]", "train.max_steps=[1, 2]", "seed=3"])
    points = grid_points(grid)
    assert len(points) == 4 and points[1] == {"codec.name": "mel", "train.max_steps": 2, "seed": 3}
    assert grid_points({"b": [1, 2]}, [{"a": 0}, {"a": 1, "b": 9}])[3] == {"a": 1, "b": 2}
    assert said(points[0]) == "codec.name=mel train.max_steps=1 seed=3"


@pytest.mark.parametrize("setting", ["train.max_steps", "train max=1", "a=[1,"])
def test_what_is_no_grid_is_refused(setting):
    with pytest.raises(ConfigError, match="expected|not YAML"):
        parse_grid([setting])
    with pytest.raises(ConfigError, match="list of values"):
        grid_points({"a": []})
    with pytest.raises(ConfigError, match="needs keys"):
        grid_points({})


def test_points_are_checked_before_the_first_runs(project):
    check_points(project, [{"model.kind": "ar"}, {"profile": "micro", "train.max_steps": 3}], temp=True)
    assert overrides_of(project, {"profile": "micro", "train.max_steps": 3})["train"]["max_steps"] == 3
    with pytest.raises(ConfigError, match=r"(?s)model.kind=arr: .*model.kind: Input should be"):
        check_points(project, [{"model.kind": "ar"}, {"model.kind": "arr"}], temp=True)
    (project / "mine").mkdir()
    with pytest.raises(ConfigError, match="ingest.path mine: neither git nor DVC knows it"):
        check_points(project, [{"ingest.path": "mine", "ingest.source": "folder"}], temp=True)
    check_points(project, [{"ingest.path": "mine", "ingest.source": "folder"}], temp=False)
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "\n")
    with pytest.raises(ConfigError, match="not the committed one"):
        check_points(project, [{"profile": "micro"}], temp=True)


def test_a_name_is_of_the_point_and_of_what_is_not_committed(project):
    name = experiment_name(project, "s", {"train.max_steps": 3})
    assert name == experiment_name(project, "s", {"train.max_steps": 3}) and name.startswith("s-")
    assert name != experiment_name(project, "s", {"train.max_steps": 4})
    (project / "conf/micro.yaml").write_text("profile: micro\n")
    assert name != experiment_name(project, "s", {"train.max_steps": 3})


def test_the_ranges_of_a_search():
    space = parse_space(
        ["train.lr=log:1e-4:1e-2", "model.layers=int:2:8:2", "train.ema=float:0:1", "model.kind=[ar, nar]"]
    )
    lr, layers, ema, kind = space.values()
    assert (lr.low, lr.high, lr.log) == (1e-4, 1e-2, True) and (layers.low, layers.high, layers.step) == (2, 8, 2)
    assert (ema.high, ema.log) == (1.0, False) and kind.choices == ("ar", "nar")
    for wrong in ("lr", "lr=log:1", "lr=log:0:1", "lr=int:1:2:3:4", "lr=5", "lr=float:2:1"):
        with pytest.raises(ConfigError, match="expected section.key"):
            parse_space([wrong])


def test_what_a_run_tries_is_what_varies():
    points = [{"profile": "digits", "model.kind": kind, "train.lr": rate} for kind in ("ar", "nar") for rate in (1, 2)]
    assert varied(points[1], points) == {"model.kind": "ar", "train.lr": 2}
    assert varied(points[0], points[:2]) == {"train.lr": 1}
    assert varied(points[0], points[:1]) == points[0]


def test_figures_and_how_they_differ():
    now = {"summary": {"wer": {"model": 0.2, "recording": 0.0}}, "train": {"loss": 2.0, "steps": 5}}
    assert (figure(now, "wer"), figure(now, "train.loss")) == (0.2, 2.0)
    real = {"train": {"train.loss": 1.5, "val.loss": 2.5, "seconds": 3.0}, "encode": {"seconds": 1.0}}
    assert [figure(real, name) for name in ("train.loss", "val.loss", "train.train.loss")] == [1.5, 2.5, 1.5]
    with pytest.raises(ConfigError, match=r"several figures 'seconds': say which of encode\.seconds, train\.seconds"):
        figure(real, "seconds")
    with pytest.raises(ConfigError, match="no figure 'cer'; there are summary.wer.model"):
        figure(now, "cer")
    run, commit = {"train": {"loss": 3.0, "steps": 5}}, {"train": {"steps": 5}}
    rows = {row["metric"]: (row["last run"], row["now"], row["change"]) for row in metric_rows(now, run, commit)}
    assert rows["train.loss"] == (3.0, 2.0, -1.0) and rows["summary.wer.model"] == (None, 0.2, None)
    assert "train.steps" not in rows
    metrics = {"a": {"kept": 3, "rejected": {"short": 1, "loud": 0}}, "b": {"rejected": 2}}
    assert reject_rows(metrics, ["a", "b"]) == [{"stage": "a", "rule": "short", "utterances": 1, "share": "25.0%"}]
    assert table([{"a": 1, "b": None}]) == "| a | b |\n|---|---|\n| 1 |  |"


def test_figures_of_stages_that_did_not_run_are_left_out(tiny, monkeypatch):
    """A revision's dvc.lock has all stages: those behind the targets as they were at the commit."""
    shown = {"a": {"loss": 1.0}, "b": {"loss": 2.0}, "c": {"wer": 0.5}}
    monkeypatch.setattr(experiment, "metrics_at", lambda root, name: shown)
    assert experiment.figures_of(tiny, "one", ["b"]) == {"a": {"loss": 1.0}, "b": {"loss": 2.0}}
    assert experiment.figures_of(tiny, "one", None) == shown


def test_a_trial_without_the_goals_figure_fails(project, monkeypatch):
    """Else it stays RUNNING, and each start of the search meets it again."""
    monkeypatch.setattr(search_flow, "experiment", lambda *_, **__: Completed(data={"train": {"loss": 1.0}}))
    monkeypatch.setattr(search_flow, "get_run_logger", lambda: logging.getLogger("search"))

    def told(goal):
        return search_flow._try(project, "search-0", {"train.lr": 0.1}, goal, ["train"], False, None, "search")

    assert told("train.loss") == {"values": 1.0}
    assert told("wer")["state"].name == "FAIL"


def test_an_experiments_copy_has_the_projects_store(tmp_path, monkeypatch):
    copy = tmp_path / ".dvc/tmp/exps/standalone/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert records_root(copy) == copy
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert records_root(copy) == tmp_path
    assert records_root(tmp_path) == tmp_path
    assert records_root(tmp_path.parent / "other") == tmp_path.parent / "other"


def test_tags_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "able-ape")
    monkeypatch.setenv(TAGS, '{"sweep": "s"}')
    assert origin_tags() == {"sweep": "s", "dvc.experiment": "able-ape"}
    monkeypatch.setenv(TAGS, "sweep")
    with pytest.raises(ValueError, match="must be a JSON object"):
        origin_tags()


@pytest.mark.parametrize("module", ["sweep", "search"])
def test_help_is_quick_and_loads_neither_prefect_nor_dvc(project_root, module):
    script = (
        f"import sys\nfrom pipelines import {module} as command\n"
        "try: command.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'prefect', 'dvc', 'torch', 'mlflow', 'optuna'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=project_root, capture_output=True).returncode == 0
