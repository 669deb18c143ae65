"""What a flow run leaves in Prefect: the run as Markdown, tables of figures, rejects and records, a link to MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from pipelines.figures import Metrics, metric_rows, metrics_at, reject_rows, workspace_metrics
from pipelines.summary import markdown
from vall_e.config import TrackingConfig

FLOW_TAG = "prefect.flow_run"
# Where `make ui` shows a store that is a file.
LOCAL_PAGES = "http://127.0.0.1:5000"


def leave_artifacts(root: Path, order: Sequence[str], states: Mapping[str, str], last_run: Metrics) -> None:
    """Leave what became of the stages and of their figures.

    Args:
        order: the stages in their order.
        states: what became of each stage; one without an entry was not reached.
        last_run: the figures as they were before the flow began.
    """
    now = workspace_metrics(root)
    text = markdown(order, states, now)
    create_markdown_artifact(text, key="pipeline", description="What ran, what was kept, what was rejected")
    _table("metrics", metric_rows(now, last_run, metrics_at(root)), "Figures that are not what they were")
    _table("rejects", reject_rows(now, [stage for stage in order if stage in states]), "Rejects by stage and rule")


def leave_records(root: Path, tracking: TrackingConfig, flow_run: str) -> None:
    """Leave the MLflow runs that a flow run made, each with the address of its page."""
    from stages.tracking import runs_tagged

    runs = runs_tagged(tracking, root, FLOW_TAG, flow_run)
    if not runs:
        return
    pages = f"{tracking.uri.rstrip('/')}" if (tracking.uri or "").startswith("http") else LOCAL_PAGES
    experiment = f"{pages}/#/experiments/{runs[0]['experiment_id']}"
    rows = [
        {key: run[key] for key in ("stage", "run", "status")} | {"page": f"{experiment}/runs/{run['run_id']}"}
        for run in runs
    ]
    _table("mlflow-runs", rows, "MLflow's record of each stage")
    create_link_artifact(
        experiment, "the experiment in MLflow", key="mlflow", description="`make ui` shows a local one"
    )


def _table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """A table artifact; none where there is nothing to say."""
    if rows:
        create_table_artifact(rows, key=key, description=description)
