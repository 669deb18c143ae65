"""What began a stage: the workspace that keeps the records, flow, sweep and experiment, which the environment tells,
and the commit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

TAGS = "VALL_E_TAGS"


POINT_TAG = "point"  # of the MLflow runs of a sweep or a search: the parameters that this experiment tries


def tags_environment(tags: Mapping[str, str]) -> dict[str, str]:
    """The environment variable that gives ``tags`` to the MLflow runs of all stages below a process."""
    return {TAGS: json.dumps(dict(tags))} if tags else {}


def origin_tags() -> dict[str, str]:
    """Tags of the stage's MLflow run: those of ``tags_environment``, and ``dvc.experiment`` within ``dvc exp run``.

    Raises:
        ValueError: the variable holds no JSON object.
    """
    try:
        tags = dict(json.loads(os.environ.get(TAGS) or "{}"))
    except (ValueError, TypeError):
        raise ValueError(
            f"{TAGS} must be a JSON object of tags for MLflow, not {os.environ[TAGS]!r}: unset it"
        ) from None
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = name
    return {str(key): str(value) for key, value in tags.items()}


def records_root(root: Path) -> Path:
    """The project's folder whose ``mlflow.db`` takes the records of a stage that runs in ``root``.

    ``dvc exp run --temp`` and ``--queue`` run stages in a copy of the project below ``.dvc/tmp``, which is removed
    afterwards; DVC names the project itself in ``DVC_ROOT``. Everywhere else it is ``root``.
    """
    project = os.environ.get("DVC_ROOT")
    if project and root.resolve().is_relative_to(Path(project).resolve() / ".dvc" / "tmp"):
        return Path(project)
    return root


def git_state(root: Path) -> dict[str, str]:
    """Tags with the commit and whether files differ from it; empty outside a repository or before its first commit."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "--verify", "-q", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except OSError:
        return {}
    return {"mlflow.source.git.commit": commit, "git.changed": str(bool(changed)).lower()} if commit else {}
