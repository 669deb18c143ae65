"""Deployments on a real Prefect server: a schedule, ``prefect deploy --all``, a worker, and a run that is cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings

pytestmark = pytest.mark.slow
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
SECONDS = 300
_SERVE = """\
import sys
from pipelines.flow import pipeline
name, interval, *targets = sys.argv[1:]
parameters = {"targets": targets, "track": False, "retries": 1}
pipeline.serve(name, interval=float(interval) or None, parameters=parameters, print_starting_message=False)
"""


@pytest.fixture(scope="module", autouse=True)
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A whole server: the temporary one of Prefect's own harness runs no scheduler."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port]
    with (home / "server.log").open("wb") as log:
        pipes = {"stdout": log, "stderr": log, "start_new_session": True}
        server = subprocess.Popen(command, cwd=home, env=environment, **pipes)
    address = f"http://127.0.0.1:{port}/api"
    try:
        until = time.monotonic() + SECONDS
        while not _answers(f"{address}/health"):
            assert server.poll() is None and time.monotonic() < until, (home / "server.log").read_text()[-3000:]
            time.sleep(0.5)
        with temporary_settings({PREFECT_API_URL: address}):
            yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _api(call: Callable[[Any], Any]) -> Any:
    """What a call of the client returns."""

    async def ask() -> Any:
        async with get_client() as client:
            return await call(client)

    return asyncio.run(ask())


def _environment(root: Path) -> dict[str, str]:
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    polls = {"PREFECT_RUNNER_POLL_FREQUENCY": "1", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    return {**os.environ, **polls, "PATH": scripts, "PYTHONPATH": str(root), "PREFECT_API_URL": PREFECT_API_URL.value()}


@pytest.fixture
def start(tiny, project_root) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a command in the toy project; it is ended with the test."""
    started: list[subprocess.Popen] = []

    def begin(*command: str) -> subprocess.Popen:
        with Path(f"process-{len(started)}.log").open("wb") as log:
            pipes = {"stdout": log, "stderr": log, "start_new_session": True}
            started.append(subprocess.Popen(command, env=_environment(project_root), **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.send_signal(signal.SIGTERM)
    for process in started:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _prefect(root: Path, *words: str) -> None:
    subprocess.run([*PREFECT, *words], env=_environment(root), check=True, timeout=SECONDS)


def _wait(what: str, condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + SECONDS
    while not (found := condition()):
        logs = "\n".join(path.read_text()[-3000:] for path in Path(".").glob("process-*.log"))
        assert time.monotonic() < until, f"no {what} within {SECONDS} s:\n{logs}"
        time.sleep(0.3)
    return found


def _runs(deployment: str) -> list:
    """The flow runs of a deployment, by when they were due."""

    async def read(client: Any) -> list:
        known = await client.read_deployments()
        mine = [each.id for each in known if each.name == deployment]
        runs = await client.read_flow_runs(limit=200, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
        return [run for run in runs if run.deployment_id in mine]

    return _api(read)


def _running(folder: Path) -> list[int]:
    """Processes that work in a folder; Python's own trackers of shared memory live as long as who started them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            zombie = "Z" in (entry / "stat").read_text().split(")")[1].split()
            tracker = b"resource_tracker" in (entry / "cmdline").read_bytes()
            if (entry / "cwd").readlink() == folder and not zombie and not tracker:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_schedule_runs_the_pipeline_and_then_finds_nothing_changed(tiny, start):
    Path("params.yaml").write_text("a: flaky\nb: 2\nc: 3\n")
    start(sys.executable, "-c", _SERVE, "often", "4", "a")

    def ended(name: str) -> list:
        """Those that came while another one had the workspace have failed, as they should."""
        return [run for run in _runs("often") if run.state and run.state.name == name]

    (first, *_) = _wait("a run on schedule", lambda: ended("Completed"))
    assert first.auto_scheduled and first.state.message == "1 of 1 stages ran: a"
    tasks = [task for task in _api(lambda client: client.read_task_runs()) if task.flow_run_id == first.id]
    assert [task.run_count for task in tasks] == [2]  # the stage failed once and was tried again
    (second, *_) = _wait("a run with nothing to do", lambda: ended("Unchanged"))
    assert second.auto_scheduled and second.state.message == "nothing changed: DVC kept all 1 stages"


def test_a_cancelled_run_leaves_no_process_and_the_next_goes_on(tiny, start):
    Path("params.yaml").write_text("a: 1\nb: hang\nc: 3\n")
    server = start(sys.executable, "-c", _SERVE, "by-hand", "0", "c")
    _wait("deployment", lambda: [d for d in _api(lambda client: client.read_deployments()) if d.name == "by-hand"])
    _prefect(tiny, "deployment", "run", "vall-e/by-hand")
    child = int(_wait("stage b", lambda: Path("child.pid").exists() and Path("child.pid").read_text()))
    (run,) = _runs("by-hand")
    before = set(_running(tiny))
    assert child in before and len(before) > 3
    _prefect(tiny, "flow-run", "cancel", str(run.id))
    _wait("end of the run", lambda: _runs("by-hand")[0].state.is_final())
    _wait("end of its processes", lambda: set(_running(tiny)) <= {server.pid, os.getpid()})
    assert _runs("by-hand")[0].state.name == "Cancelled"
    assert Path("data/a/out.txt").exists() and not Path("data/b").exists()

    Path("params.yaml").write_text("a: 1\nb: 2\nc: 3\n")
    _prefect(tiny, "deployment", "run", "vall-e/by-hand")
    again = _wait("second run", lambda: [r for r in _runs("by-hand") if r.id != run.id and r.state.is_final()])
    assert again[0].state.message == "2 of 3 stages ran: b, c"


def test_all_deployments_of_the_project_are_made_and_a_worker_runs_one(tiny, start, project_root):
    named = [row["name"] for row in yaml.safe_load((project_root / "prefect.yaml").read_text())["deployments"]]
    _prefect(project_root, "work-pool", "create", "--type", "process", "vall-e")
    Path("prefect.yaml").write_text((project_root / "prefect.yaml").read_text())
    Path("pipelines").symlink_to(project_root / "pipelines")
    _prefect(project_root, "deploy", "--all")
    made = {each.name: each for each in _api(lambda client: client.read_deployments())}
    assert set(named) == {"nightly", "on-demand", "evaluation", "sweep"} and set(named) <= set(made)
    assert made["nightly"].schedules[0].schedule.cron == "0 2 * * *"

    start(*PREFECT, "worker", "start", "--pool", "vall-e")
    given = ["profile=null", 'targets=["b"]', "stage_timeouts={}", "track=false"]
    words = ["deployment", "run", "vall-e/nightly", *(word for value in given for word in ("-p", value))]
    _prefect(project_root, *words)
    ready = lambda: [run for run in _runs("nightly") if run.state.is_final()]  # noqa: E731
    assert _wait("run of the worker", ready)[0].state.message == "2 of 2 stages ran: a, b"
