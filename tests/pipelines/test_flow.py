"""The flow against a real Prefect API (a server that the test starts on loopback) and a real, tiny DVC project."""

from __future__ import annotations

import asyncio
import inspect
import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness

from pipelines.command import StageFailed
from pipelines.flow import StageResult, pipeline
from pipelines.process import StepTimeout
from pipelines.workspace import WorkspaceBusy
from vall_e.config import ConfigError, read_yaml


@pytest.fixture(scope="module", autouse=True)
def prefect_api():
    with prefect_test_harness(server_startup_timeout=300):
        yield


def _ran(results) -> dict[str, bool]:
    return {result.stage: result.ran for result in results}


async def _read(what: str):
    async with get_client() as client:
        return await getattr(client, what)()


def _newest_artifact(key: str = "pipeline") -> str:
    return max((a for a in asyncio.run(_read("read_artifacts")) if a.key == key), key=lambda a: a.created).data


def test_runs_what_changed_and_only_that(tiny):
    Path("params.yaml").write_text("profile: tiny\na: 1\nb: 2\nc: 3\n")
    assert _ran(pipeline(track=False)) == {"a": True, "b": True, "c": True}
    Path("params.yaml").write_text("a: 1\nb: 5\nc: 3\n")
    state = pipeline(track=False, return_state=True)
    assert _ran(state.result()) == {"a": False, "b": True, "c": True}
    assert state.message == "2 of 3 stages ran: b, c"
    assert Path("data/c/out.txt").read_text() == "153"

    names = {run.name for run in asyncio.run(_read("read_task_runs"))}
    assert {"a", "b", "c"} <= names
    assert "| a | unchanged |" in _newest_artifact()
    assert "| b | ran | 0.5 | 10 | short: 2 |" in _newest_artifact()
    assert "tiny" in {run.name for run in asyncio.run(_read("read_flow_runs"))}


def test_nothing_changed_is_said_in_the_state(tiny):
    pipeline(["a"], track=False)
    state = pipeline(["a"], track=False, return_state=True)
    assert (state.name, state.message) == ("Unchanged", "nothing changed: DVC kept all 1 stages")
    assert state.is_completed() and _ran(state.result()) == {"a": False}


def test_tables_of_figures_and_rejects(tiny):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@localhost"]
    pipeline(["b"], track=False)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    text = Path("stage.py").read_text()
    Path("stage.py").write_text(text.replace('"kept": 10', '"kept": 12'))
    pipeline(["b"], track=False)
    rows = {row["metric"]: row for row in json.loads(_newest_artifact("metrics"))}
    assert set(rows) == {"a.kept", "b.kept"}
    dvc = subprocess.run([sys.executable, "-m", "dvc", "metrics", "diff", "--json"], capture_output=True, check=True)
    told = json.loads(dvc.stdout)["metrics/a.json"]["kept"]
    said = {"last commit": told["old"], "last run": told["old"], "now": told["new"], "change": told["diff"]}
    assert rows["a.kept"] == {"metric": "a.kept", **said} and told["diff"] == 2
    rejects = json.loads(_newest_artifact("rejects"))
    assert rejects[0] == {"stage": "a", "rule": "short", "utterances": 2, "share": "14.3%"}


def test_targets_alone_leave_what_they_need_as_it_is(tiny):
    pipeline(track=False)
    Path("params.yaml").write_text("a: 7\nb: 2\nc: 4\n")
    assert _ran(pipeline(["c"], upstream=False, track=False)) == {"c": True}
    assert Path("data/c/out.txt").read_text() == "124"


def test_a_stage_has_a_timeout_and_retries_of_its_own(tiny):
    Path("params.yaml").write_text("a: flaky\nb: hang\nc: 3\n")
    with pytest.raises(StepTimeout, match="longer than 8 s"):
        pipeline(track=False, retries=0, stage_retries={"a": 1}, stage_timeouts={"b": 8})
    assert "| a | ran |" in _newest_artifact() and "| b | not reached |" in _newest_artifact()
    with pytest.raises(ConfigError, match="no stage trian in dvc.yaml; there are a, b, c"):
        pipeline(track=False, stage_timeouts={"trian": 8})


def test_a_stage_has_a_day_and_a_training_what_it_needs(tiny, monkeypatch):
    limits: list[float | None] = []

    def step(stage, root, limit, tags):
        limits.append(limit)
        return StageResult(stage, ran=False)

    monkeypatch.setattr("pipelines.flow.stage_order", lambda *_, **__: ["encode", "train"])
    monkeypatch.setattr("pipelines.flow._check_names", lambda *_: None)
    monkeypatch.setattr("pipelines.flow.run_stage", SimpleNamespace(with_options=lambda **_: step))
    monkeypatch.setattr("pipelines.flow._leave", lambda *_: None)
    for given in ({}, {"timeout_seconds": 5.0}, {"timeout_seconds": 5.0, "stage_timeouts": {"train": 7.0}}):
        pipeline(track=False, **given)
    assert limits == [86_400.0, None, 5.0, 5.0, 5.0, 7.0]


def test_a_crashed_stage_is_tried_again(tiny):
    Path("params.yaml").write_text("a: flaky\nb: 2\nc: 3\n")
    with pytest.raises(StageFailed, match="out of luck"):
        pipeline(["a"], track=False, retries=0)
    Path("tried").unlink()
    assert _ran(pipeline(["a"], track=False, retries=1)) == {"a": True}


def test_a_refused_input_is_one_line_and_not_tried_again(tiny, caplog):
    Path("params.yaml").write_text("a: 1\nb: bad\nc: 3\n")
    with pytest.raises(StageFailed, match="^b: error: the value is bad: use another one$"):
        pipeline(track=False, retries=3)
    assert not Path("data/c").exists()
    assert "| c | not reached |" in _newest_artifact()


def test_a_timeout_leaves_no_process_and_the_next_run_works(tiny):
    Path("params.yaml").write_text("a: hang\nb: 2\nc: 3\n")
    with pytest.raises(StepTimeout):
        pipeline(["a"], track=False, retries=0, timeout_seconds=8)
    pid = int(Path("child.pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    Path("params.yaml").write_text("a: 1\nb: 2\nc: 3\n")
    assert _ran(pipeline(["a"], track=False)) == {"a": True}


def test_a_second_run_in_the_same_workspace_is_refused(tiny):
    (tiny / ".work").mkdir()
    with FileLock(tiny / ".work" / "pipeline.lock"), pytest.raises(WorkspaceBusy, match="another run holds"):
        pipeline(track=False)


_RECORDED = """\
import json, pathlib
from stages.recorder import Recorder
from vall_e.config import load_params
params = load_params()
with Recorder(params.tracking, pathlib.Path("."), "ingest", params.profile, "data") as run:
    run.params({"ingest": {"layout": params.ingest.layout}})
for name in ("data/ingest", "metrics"):
    pathlib.Path(name).mkdir(parents=True, exist_ok=True)
pathlib.Path("data/ingest/rows").write_text("rows")
pathlib.Path("metrics/ingest.json").write_text(json.dumps({"kept": 7}))
"""


def test_a_run_leaves_its_records_wherever_it_was_started(tiny, tmp_path_factory, project_root, monkeypatch):
    """The project is in ``root``; the folder that the flow was started in holds none."""
    (tiny / "stage.py").write_text(_RECORDED)
    (tiny / "params.yaml").write_text((project_root / "params.yaml").read_text())
    stage = {"cmd": f"{sys.executable} stage.py", "deps": ["stage.py"], "outs": ["data/ingest"]}
    (tiny / "dvc.yaml").write_text(json.dumps({"stages": {"ingest": stage | {"metrics": ["metrics/ingest.json"]}}}))
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    for ran, status in ((True, "FINISHED"), (False, "CACHED")):
        assert _ran(pipeline(root=str(tiny))) == {"ingest": ran}
        (row,) = json.loads(_newest_artifact("mlflow-runs"))
        assert (row["stage"], row["status"]) == ("ingest", status)
        assert row["page"].startswith("http://127.0.0.1:5000/#/experiments/")
    assert "http://127.0.0.1:5000/#/experiments/" in _newest_artifact("mlflow")
    with sqlite3.connect(tiny / "mlflow.db") as store:
        assert store.execute("select value from metrics where key = 'kept'").fetchall() == [(7.0,)]
        assert ("demo",) in store.execute("select value from tags where key = 'profile'").fetchall()
    assert not list(Path.cwd().rglob("*.db"))


def test_a_run_may_wait_for_the_one_before_it(tiny):
    (tiny / ".work").mkdir()
    other = FileLock(tiny / ".work" / "pipeline.lock", thread_local=False)
    other.acquire()
    freed = threading.Timer(1.5, other.release)
    freed.start()
    assert _ran(pipeline(["a"], track=False, wait_seconds=60)) == {"a": True}
    assert freed.finished.is_set()


def test_the_nightly_run_depends_on_nothing_that_another_left(project_root):
    nightly = read_yaml(project_root / "prefect.yaml")["deployments"][0]
    asked = nightly["parameters"]
    assert nightly["name"] == "nightly" and asked["profile"] == "demo" and asked["wait_seconds"] > 3600
    assert set(asked) <= set(inspect.signature(pipeline.fn).parameters)
