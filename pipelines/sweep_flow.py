"""The flow of a sweep: a sub-flow for each experiment, and a table of their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.settings import use_local_prefect

use_local_prefect()

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_table_artifact  # noqa: E402
from prefect.states import Completed, State  # noqa: E402

from pipelines.experiment import (  # noqa: E402
    check_points,
    experiment,
    experiment_name,
    experiment_names,
    remove_experiments,
    said,
    varied,
)
from pipelines.figures import Metrics, figure  # noqa: E402
from pipelines.sweep import FIGURES, Point, SweepFailed, grid_points, table  # noqa: E402
from pipelines.workspace import workspace_lock  # noqa: E402
from stages.origin import POINT_TAG  # noqa: E402
from vall_e.config import ConfigError  # noqa: E402


@flow(name="vall-e-sweep", flow_run_name="{name}", persist_result=False)
def sweep(
    grid: dict[str, list[Any]] | None = None,
    points: list[dict[str, Any]] | None = None,
    name: str = "sweep",
    root: str = ".",
    targets: list[str] | None = None,
    temp: bool = True,
    again: bool = False,
    figures: list[str] | None = None,
    timeout_seconds: float | None = None,
    retries: int = 0,
) -> list[dict[str, Any]]:
    """Run an experiment for each point of a grid; those that this commit has already are not run again.

    Args:
        grid: dotted keys and lists of values, every combination of which is run; ``profile`` is one of the keys.
        points: in place of the grid, or below it: overrides, each a dictionary of dotted keys.
        name: begins the names of the experiments; tag ``sweep`` of their MLflow runs.
        targets: these stages and what they need; all by default.
        temp: in copies of the project (``dvc exp run --temp``); False: in the workspace.
        again: ask DVC also for experiments that are there, whose data may have changed.
        figures: columns of the table (``wer`` is ``summary.wer.model``); error rates, similarity and DNSMOS by default.
        timeout_seconds: what one experiment may take.
        retries: how often a failed experiment is started again.

    Returns:
        a row for each experiment: ``experiment``, ``state``, its point and its figures.

    Raises:
        ConfigError: a point is not valid; nothing ran.
        SweepFailed: experiments failed; the others ran.
        WorkspaceBusy: another run holds the workspace.
    """
    folder, rows = Path(root), []
    todo = grid_points(grid or {}, points or ())
    check_points(folder, todo, temp)
    with workspace_lock(root):
        names = [experiment_name(folder, name, point) for point in todo]
        if again and (there := sorted(experiment_names(folder) & set(names))):
            remove_experiments(folder, there)
        try:
            for number, (key, point) in enumerate(zip(names, todo, strict=True), 1):
                get_run_logger().info("%d of %d: %s (%s)", number, len(todo), key, said(point))
                step = experiment.with_options(retries=retries)
                tags = {"sweep": name, POINT_TAG: said(varied(point, todo))}
                state = step(key, point, root, targets, temp, timeout_seconds, tags, return_state=True)
                rows.append(_row(key, point, state, figures or FIGURES))
        finally:
            _leave(rows)
    for key in figures or ():
        if rows and all(row[key] is None for row in rows):
            get_run_logger().warning("no experiment has the figure %s: its column is empty (metrics/*.json)", key)
    if failed := [row["experiment"] for row in rows if row["state"] == "failed"]:
        raise SweepFailed(f"{len(failed)} of {len(rows)} experiments failed: {', '.join(failed)}")
    return Completed(data=rows, message=f"{len(rows)} experiments")


def _row(name: str, point: Point, state: State, figures: Sequence[str]) -> dict[str, Any]:
    found: Metrics = state.result() if state.is_completed() else {}
    done = "failed" if not state.is_completed() else "was there" if state.name == "Unchanged" else "ran"
    return {"experiment": name, "state": done, **point, **{key: figure_or_none(found, key) for key in figures}}


def figure_or_none(metrics: Mapping[str, Any], name: str) -> float | None:
    """A figure, or None where an experiment has none: it failed, or its stages do not measure it."""
    try:
        return figure(metrics, name)
    except ConfigError:
        return None


def _leave(rows: list[dict[str, Any]]) -> None:
    if rows:
        keys = list(dict.fromkeys(key for row in rows for key in row))
        rows = [{key: row.get(key) for key in keys} for row in rows]
        create_table_artifact(rows, key="sweep", description="Experiments and their figures")
        print(table(rows))
