"""How the runs in MLflow hang together: by tags that stages leave, read in both directions.

- ``output.FOLDER`` is the digest of what a run wrote, ``input.FOLDER`` of what it read; ``made_by.FOLDER`` is the id of
  the run that wrote it. From a training run these lead to all data runs before it.
- ``trained.RUN`` on a data run names a training that its data went into, ``model.NAME.VERSION`` on a training run a
  registered model that came out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

INPUT, OUTPUT, MADE_BY, TRAINED, MODEL = "input.", "output.", "made_by.", "trained.", "model."


def find_maker(client: MlflowClient, experiments: Sequence[str], path: str, digest: str) -> str | None:
    """The id of the newest run that wrote exactly these bytes to ``path``."""
    found = client.search_runs(list(experiments), f"tags.`{OUTPUT}{path}` = '{digest}'", max_results=1)
    return found[0].info.run_id if found else None


def ancestors(client: MlflowClient, run_id: str) -> list[Run]:
    """The runs whose outs a run was made from, and theirs, nearest first; those that were deleted are left out."""
    from mlflow.exceptions import MlflowException

    found: dict[str, Run] = {}
    todo = [run_id]
    while todo:
        try:
            run = client.get_run(todo.pop(0))
        except MlflowException:
            continue
        found[run.info.run_id] = run
        todo += [maker for _, maker in tagged(run, MADE_BY) if maker not in found and maker not in todo]
    found.pop(run_id, None)
    return list(found.values())


def tagged(run: Run, prefix: str) -> Iterator[tuple[str, str]]:
    """Name behind the prefix, and value, of a run's tags of one kind."""
    return ((key.removeprefix(prefix), value) for key, value in run.data.tags.items() if key.startswith(prefix))


def trainings_of(client: MlflowClient, run: Run) -> list[Run]:
    """The training runs that the data of a run went into, oldest first."""
    from mlflow.exceptions import MlflowException

    found = []
    for run_id, _ in tagged(run, TRAINED):
        try:
            found.append(client.get_run(run_id))
        except MlflowException:  # deleted since
            continue
    return sorted(found, key=lambda training: training.info.start_time)
