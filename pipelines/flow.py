"""The Prefect flow: DVC's stages in DVC's order, one task each, with retries, a timeout, log lines and a report.

DVC decides what has to run and holds the only cache (``dvc repro --single-item STAGE``; Prefect's caching is off). One
run at a time per workspace: a second one is refused.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from pipelines.settings import use_local_prefect

use_local_prefect()

from filelock import FileLock, Timeout  # noqa: E402
from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402

from pipelines.dag import stage_order  # noqa: E402
from pipelines.process import run_process  # noqa: E402
from pipelines.summary import markdown  # noqa: E402

HOURS = 3600.0
# What DVC advises after every stage, to people at a prompt.
_ADVICE = (
    "To track the changes",
    "git add ",
    "To enable auto staging",
    "dvc config ",
    "Use `dvc push`",
    "Updating lock",
)


class StageFailed(RuntimeError):
    """A stage ended with an error; ``lines`` are the last it said.

    Attributes:
        input_error: the stage said in one line what is wrong with its input: trying again cannot help.
    """

    def __init__(self, stage: str, code: int, lines: list[str]):
        said = next((line for line in reversed(lines) if line.startswith(f"{stage}: error: ")), None)
        self.stage, self.input_error, self.lines = stage, said is not None, lines[-20:]
        super().__init__(said or f"{stage} ended with exit code {code}:\n" + "\n".join(self.lines))


class WorkspaceBusy(RuntimeError):
    """Another run of the pipeline holds the workspace."""


@dataclass(frozen=True)
class StageResult:
    """``ran`` is False where DVC had nothing to do or took the outs from its cache."""

    stage: str
    ran: bool


def _worth_retrying(task, task_run, state) -> bool:
    failure = state.result(raise_on_failure=False)
    return not (isinstance(failure, StageFailed) and failure.input_error)


@task(
    name="stage",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=_worth_retrying,
)
def run_stage(stage: str, root: str, timeout_seconds: float | None = 24 * HOURS, track: bool = True) -> StageResult:
    """Run one stage with DVC. Raises StageFailed or StepTimeout; a cancelled run leaves no process behind."""
    logger = get_run_logger()
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}

    def log(line: str) -> None:
        if not line.strip().startswith(_ADVICE):
            logger.info("%s", line)

    code, lines = run_process(command, log, cwd=root, env=env, timeout=timeout_seconds)
    if code:
        raise StageFailed(stage, code, lines)
    ran = any(line.startswith("Running stage") for line in lines)
    if not ran and track:
        _record_cached(stage)
    return StageResult(stage, ran)


def _record_cached(stage: str) -> None:
    """Leave a trace of the skipped stage in MLflow, through the stage's own module."""
    from importlib import import_module

    from stages.runner import record_cached
    from vall_e.config import load_params

    record_cached(import_module(f"stages.{stage}").STAGE, load_params())


@flow(name="vall-e", flow_run_name="{profile}", persist_result=False, validate_parameters=True)
def pipeline(
    targets: list[str] | None = None,
    root: str = ".",
    profile: str = "params.yaml",
    timeout_seconds: float = 24 * HOURS,
    retries: int = 1,
    track: bool = True,
) -> list[StageResult]:
    """Run the stages that ``targets`` need, all by default.

    Args:
        root: the project's folder.
        profile: name of the run; the parameters are those in ``params.yaml``.
        timeout_seconds: what one stage may take.
        retries: how often a stage that crashed is started again; one that refused its input is not.
        track: record skipped stages in MLflow.

    Raises:
        WorkspaceBusy: another run holds the workspace.
        StageFailed: a stage ended with an error; the stages after it did not run.
    """
    lock = Path(root) / ".work" / "pipeline.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    results: list[StageResult] = []
    try:
        with FileLock(lock, timeout=0):
            order = stage_order(root, targets or ())
            get_run_logger().info("%d stages: %s", len(order), " → ".join(order))
            step = run_stage.with_options(retries=retries)
            try:
                for stage in order:
                    results.append(step(stage, root, timeout_seconds, track))
            finally:
                states = {result.stage: "ran" if result.ran else "unchanged" for result in results}
                text = markdown(order, states, _metrics(Path(root)))
                create_markdown_artifact(text, key="pipeline", description="What ran, what was kept, what was rejected")
    except Timeout:
        raise WorkspaceBusy(f"another run holds {lock.resolve()}: wait for it, or cancel it first") from None
    return results


def _metrics(root: Path) -> dict[str, dict]:
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / "metrics").glob("*.json"))
    }
