"""How the runs in MLflow hang together: by tags that stages leave, read in both directions.

- ``output.FOLDER`` is the digest of what a run wrote, ``input.FOLDER`` of what it read; ``made_by.FOLDER`` is the id of
  the run that wrote it. From a training run these lead to all data runs before it.
- ``md5.FOLDER`` is DVC's hash of what a run wrote, as ``dvc.lock`` has it: it leads from a commit to its runs.
- ``trained.RUN`` on a data run names a training that its data went into, ``model.NAME.VERSION`` on a training run a
  registered model that came out.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vall_e.config import parse_yaml

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

INPUT, OUTPUT, MADE_BY, TRAINED, MODEL = "input.", "output.", "made_by.", "trained.", "model."
DVC_HASH = "md5."


def dvc_hash(path: str | Path) -> str:
    """What DVC will call a file or a folder in ``dvc.lock``: MD5 of the bytes, or of the list of the files' own."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    listed = [{"md5": dvc_hash(path / file), "relpath": file} for file in files]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def runs_of_commit(client: MlflowClient, experiments: Sequence[str], root: Path, revision: str) -> list[Run]:
    """The trainings behind a git revision, newest first: those that made the voice of its ``dvc.lock``, or, where it
    has none that is known here, those that ran on it."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    if (commit := git("rev-parse", "--verify", "-q", f"{revision}^{{commit}}")) is None:
        return []
    commit, lock = commit.strip(), parse_yaml(git("show", f"{commit.strip()}:./dvc.lock") or "") or {}
    outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", ())]
    hashes = [out["md5"] for out in outs if out["path"] == "models/voice" and "md5" in out]
    for key, values in ((f"{DVC_HASH}models/voice", hashes), ("mlflow.source.git.commit", [commit])):
        for value in values:
            which = f"tags.`{key}` = '{value}' and tags.stage = 'train'"
            found = client.search_runs(list(experiments), which, order_by=["start_time DESC"])
            if found := [run for run in found if run.data.tags.get("cached") != "true"]:
                return found
    return []


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
