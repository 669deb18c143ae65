"""The flow against a real Prefect API (a server that the test starts on loopback) and a real, tiny DVC project."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness

from pipelines.flow import StageFailed, WorkspaceBusy, pipeline
from pipelines.process import StepTimeout


@pytest.fixture(scope="module", autouse=True)
def prefect_api():
    with prefect_test_harness(server_startup_timeout=120):
        yield


def _ran(results) -> dict[str, bool]:
    return {result.stage: result.ran for result in results}


async def _read(what: str):
    async with get_client() as client:
        return await getattr(client, what)()


def _newest_artifact() -> str:
    return max((a for a in asyncio.run(_read("read_artifacts")) if a.key == "pipeline"), key=lambda a: a.created).data


def test_runs_what_changed_and_only_that(tiny):
    assert _ran(pipeline(track=False, profile="tiny")) == {"a": True, "b": True, "c": True}
    Path("params.yaml").write_text("a: 1\nb: 5\nc: 3\n")
    assert _ran(pipeline(track=False)) == {"a": False, "b": True, "c": True}
    assert Path("data/c/out.txt").read_text() == "153"

    names = {run.name for run in asyncio.run(_read("read_task_runs"))}
    assert {"a", "b", "c"} <= names
    assert "| a | unchanged |" in _newest_artifact()
    assert "| b | ran | 0.5 | 10 | short: 2 |" in _newest_artifact()
    assert "tiny" in {run.name for run in asyncio.run(_read("read_flow_runs"))}


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
