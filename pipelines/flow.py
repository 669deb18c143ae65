"""The Prefect flow: DVC's stages in DVC's order, one task each, with retries, a timeout, log lines and a report.

DVC decides what has to run and holds the only cache (``dvc repro --single-item STAGE``; Prefect's caching is off). One
run at a time per workspace: a second one is refused, or waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.settings import use_local_prefect

use_local_prefect()

from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.runtime import flow_run  # noqa: E402
from prefect.states import Completed, State  # noqa: E402

from pipelines.artifacts import FLOW_TAG, leave_artifacts, leave_records  # noqa: E402
from pipelines.command import StageFailed, run_dvc  # noqa: E402
from pipelines.dag import stage_order  # noqa: E402
from pipelines.figures import workspace_metrics  # noqa: E402
from pipelines.profile import prepare, write_params  # noqa: E402
from pipelines.watched import check_watched  # noqa: E402
from pipelines.workspace import workspace_lock  # noqa: E402
from vall_e.config import ConfigError, load_params, read_yaml  # noqa: E402

HOURS = 3600.0


@dataclass(frozen=True)
class StageResult:
    """``ran`` is False where DVC had nothing to do or took the outs from its cache."""

    stage: str
    ran: bool


def worth_retrying(task, task_run, state) -> bool:
    """False for what trying again cannot help: a stage that refused its input."""
    failure = state.result(raise_on_failure=False)
    return not (isinstance(failure, StageFailed) and failure.input_error)


@task(
    name="stage",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
)
def run_stage(
    stage: str, root: str, timeout_seconds: float | None = 24 * HOURS, tags: dict[str, str] | None = None
) -> StageResult:
    """Run one stage with DVC. Raises StageFailed or StepTimeout; a cancelled run leaves no process behind.

    Args:
        tags: for the MLflow run of the stage; None: a stage that DVC skipped is not recorded.
    """
    logger = get_run_logger()
    words = ["repro", "--single-item", stage]
    code, lines = run_dvc(words, root, lambda line: logger.info("%s", line), timeout_seconds, tags)
    if code:
        raise StageFailed(stage, code, lines)
    ran = any(line.startswith("Running stage") for line in lines)
    if not ran and tags is not None:
        _record_cached(stage, Path(root), tags)
    return StageResult(stage, ran)


def _record_cached(stage: str, root: Path, tags: Mapping[str, str]) -> None:
    """Leave a trace of the skipped stage in MLflow, through the stage's own module."""
    from importlib import import_module

    from stages.runner import record_cached

    record_cached(import_module(f"stages.{stage}").STAGE, load_params(root / "params.yaml"), tags, root)


def _run_name() -> str:
    """The profile: the one asked for, or the one that ``params.yaml`` names."""
    asked = flow_run.parameters
    path = Path(asked["root"]) / "params.yaml"
    if asked["profile"] or not path.is_file():
        return asked["profile"] or path.name
    return str(read_yaml(path).get("profile", path.name))


def _limit(stage: str, seconds: float | None) -> float | None:
    """What a stage may take where nothing is said of it alone: a training may be as long as it was meant to be."""
    return 24 * HOURS if seconds is None and stage != "train" else seconds


@flow(name="vall-e", flow_run_name=_run_name, persist_result=False, validate_parameters=True)
def pipeline(
    targets: list[str] | None = None,
    root: str = ".",
    profile: str | None = None,
    settings: list[str] | None = None,
    upstream: bool = True,
    timeout_seconds: float | None = None,
    stage_timeouts: dict[str, float] | None = None,
    retries: int = 1,
    stage_retries: dict[str, int] | None = None,
    track: bool = True,
    wait_seconds: float = 0.0,
) -> list[StageResult]:
    """Run the stages that ``targets`` need, all by default. The message of the final state says what ran.

    Args:
        root: the project's folder.
        profile: written into ``params.yaml`` first, over the committed one; by default ``params.yaml`` is run as it is.
        settings: ``section.key=value`` put over the profile, or over ``params.yaml`` as it is.
        upstream: run what the targets depend on as well; False: the targets alone, on what is there.
        timeout_seconds: what one stage may take; None: a day, and ``train`` what it needs.
        stage_timeouts: the same for stages by name.
        retries: how often a stage that crashed or failed is started again; one that refused its input is not.
        stage_retries: the same for stages by name.
        track: record skipped stages in MLflow.
        wait_seconds: how long to wait for another run that holds the workspace.

    Raises:
        WorkspaceBusy: another run holds the workspace, and held it for ``wait_seconds``.
        ConfigError: an unknown stage, profile, key or value; nothing has been written.
        StageFailed: a stage ended with an error; the stages after it did not run.
    """
    folder, tags = Path(root), {FLOW_TAG: flow_run.id}
    timeouts, tries = stage_timeouts or {}, stage_retries or {}
    with workspace_lock(root, wait_seconds):
        _check_names(root, [*timeouts, *tries])
        if profile or settings:
            use_profile(folder, profile, settings or ())
        order = stage_order(root, targets or (), upstream=upstream)
        get_run_logger().info("%d stages: %s", len(order), " → ".join(order))
        before, results = workspace_metrics(root), []
        try:
            for stage in order:
                step = run_stage.with_options(retries=tries.get(stage, retries))
                limit = timeouts.get(stage, _limit(stage, timeout_seconds))
                results.append(step(stage, root, limit, tags if track else None))
        except Exception:  # a cancelled run has no time for artifacts
            _leave(folder, order, results, before, track)
            raise
        _leave(folder, order, results, before, track)
    return _final_state(results)


def use_profile(root: Path, profile: str | None, settings: Iterable[str]) -> None:
    """Write a profile and settings into ``params.yaml``. Raises ConfigError with the file untouched."""
    text, params = prepare(root, profile, settings)
    check_watched(root / params.ingest.path, root)
    write_params(root, text)


def _check_names(root: str, names: Iterable[str]) -> None:
    if (asked := set(names)) and (unknown := sorted(asked - set(stages := stage_order(root)))):
        raise ConfigError(f"no stage {', '.join(unknown)} in dvc.yaml; there are {', '.join(sorted(stages))}")


def _leave(root: Path, order: list[str], results: list[StageResult], before: dict, track: bool) -> None:
    """Leave the artifacts; where that fails the run's own end must not be hidden by it."""
    states = {result.stage: "ran" if result.ran else "unchanged" for result in results}
    try:
        leave_artifacts(root, order, states, before)
        if track:
            leave_records(root, load_params(root / "params.yaml").tracking, flow_run.id)
    except Exception:
        get_run_logger().exception("The run has no artifacts")


def _final_state(results: list[StageResult]) -> State[list[StageResult]]:
    ran = [result.stage for result in results if result.ran]
    if ran:
        return Completed(data=results, message=f"{len(ran)} of {len(results)} stages ran: {', '.join(ran)}")
    return Completed(data=results, name="Unchanged", message=f"nothing changed: DVC kept all {len(results)} stages")
