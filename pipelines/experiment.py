"""One experiment as a sub-flow: DVC's ``exp run`` with overrides, its records in the project's MLflow store.

An experiment runs in a copy of the project below ``.dvc/tmp`` (``temp``), which leaves the workspace as it is and holds
what git and DVC know, or in the workspace itself, which keeps unfinished work of a killed stage. Either way stages that
an earlier run has made with the same inputs come out of DVC's cache, and the result is a DVC experiment on the commit.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.settings import use_local_prefect

use_local_prefect()

from prefect import flow, get_run_logger  # noqa: E402
from prefect.runtime import flow_run  # noqa: E402
from prefect.states import Completed, State  # noqa: E402

from pipelines.artifacts import FLOW_TAG  # noqa: E402
from pipelines.command import StageFailed, run_dvc  # noqa: E402
from pipelines.dag import metrics_of, stage_order  # noqa: E402
from pipelines.figures import metrics_at  # noqa: E402
from pipelines.profile import (  # noqa: E402
    committed_params,
    nested,
    overridden,
    profile_overrides,
    settings_for_dvc,
    write_params,
)
from vall_e.config import ConfigError, Params, merge  # noqa: E402

Point = Mapping[str, Any]


def overrides_of(root: Path, point: Point) -> dict[str, Any]:
    """What a point of a sweep changes in ``params.yaml``.

    Args:
        point: dotted keys and their values; ``profile`` names a profile, which the other keys are put over.

    Raises:
        ConfigError: there is no such profile.
    """
    out = profile_overrides(root, str(point["profile"])) if "profile" in point else {}
    for key, value in point.items():
        if key != "profile":
            out = merge(out, nested(key, value))
    return out


def check_points(root: Path, points: Sequence[Point], temp: bool) -> None:
    """Refuse a sweep before its first experiment.

    Raises:
        ConfigError: a key or a value that is not valid, naming its point; uncommitted parameters below a profile;
            recordings that a copy of the project would not hold.
    """
    text = (root / "params.yaml").read_text(encoding="utf-8")
    if any("profile" in point for point in points) and text != committed_params(root):
        raise ConfigError(
            "params.yaml is not the committed one, under all profiles: commit it, or `git checkout params.yaml`"
        )
    for point in points:
        try:
            _, params = overridden(text, overrides_of(root, point))
        except ConfigError as error:
            raise ConfigError(f"{said(point)}: {error}") from None
        if temp:
            _check_recordings(root, params)


def _check_recordings(root: Path, params: Params) -> None:
    path = Path(params.ingest.path)
    if path.is_absolute() or (root / f"{path}.dvc").is_file():
        return
    known = subprocess.run(["git", "ls-files", "--", str(path)], cwd=root, capture_output=True, text=True, check=False)
    if not known.stdout.strip():
        raise ConfigError(
            f"ingest.path {path}: neither git nor DVC knows it, so the copy of the project that an experiment runs in "
            f"would not hold it: give an absolute path, `dvc add {path}`, or run in the workspace"
        )


def said(point: Point) -> str:
    """``model.kind=ar train.max_steps=10``."""
    return " ".join(f"{key}={json.dumps(value, ensure_ascii=False).strip(chr(34))}" for key, value in point.items())


def varied(point: Point, points: Sequence[Point]) -> Point:
    """What of a point is not the same in all ``points``; all of it where nothing is."""
    return {key: value for key, value in point.items() if any(p.get(key) != value for p in points)} or point


def experiment_name(root: Path, prefix: str, point: Point) -> str:
    """``PREFIX-0123abcd``, the same for the same point and the same uncommitted changes of what git tracks."""
    words = ["git", "diff", "HEAD", "--", ".", ":(exclude)dvc.lock", ":(exclude)params.yaml"]
    changed = subprocess.run(words, cwd=root, capture_output=True, check=False).stdout
    params = (root / "params.yaml").read_bytes()
    said = json.dumps(overrides_of(root, point), sort_keys=True).encode()
    return f"{prefix}-{hashlib.sha256(b'|'.join([said, params, changed])).hexdigest()[:8]}"


def experiment_names(root: Path) -> set[str]:
    """The experiments on the commit that is checked out."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return {name for found in repo.experiments.ls().values() for name, _ in found}


def remove_experiments(root: Path, names: Sequence[str]) -> None:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        repo.experiments.remove(list(names))


def figures_of(root: Path, name: str, targets: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """The figures of an experiment. Those of stages that its targets do not need are the commit's, and left out."""
    found = metrics_at(root, name)
    if not targets:
        return found
    made = metrics_of(root, stage_order(root, targets))
    return {metric: figures for metric, figures in found.items() if metric in made}


@flow(name="vall-e-experiment", flow_run_name="{name}", persist_result=False)
def experiment(
    name: str,
    point: dict[str, Any],
    root: str = ".",
    targets: list[str] | None = None,
    temp: bool = True,
    timeout_seconds: float | None = None,
    tags: dict[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run one experiment, unless DVC has one of this name on this commit, and return its figures.

    Args:
        name: the experiment's in DVC.
        point: dotted keys and their values.
        targets: these stages and what they need; all by default.
        temp: in a copy of the project; False: in the workspace, whose ``params.yaml`` is put back afterwards.
        timeout_seconds: what the whole experiment may take.
        tags: for the MLflow runs of its stages.

    Returns:
        the contents of ``metrics/*.json`` by name, of the stages that the targets need.

    Raises:
        StageFailed: an error of DVC or of a stage.
        StepTimeout: it took too long.
    """
    logger, folder = get_run_logger(), Path(root)
    if name in experiment_names(folder):
        found = figures_of(folder, name, targets)
        return Completed(data=found, name="Unchanged", message=f"the experiment {name} is there: DVC ran nothing")
    words = ["exp", "run", "--name", name, *(["--temp"] if temp else [])]
    for setting in settings_for_dvc(overrides_of(folder, point)):
        words += ["--set-param", setting]
    before = (folder / "params.yaml").read_text(encoding="utf-8")
    try:
        origin = {FLOW_TAG: flow_run.id, **(tags or {})}
        code, lines = run_dvc(
            [*words, *(targets or [])], root, lambda line: logger.info("%s", line), timeout_seconds, origin
        )
    finally:
        if not temp:
            write_params(folder, before)
    if code:
        raise StageFailed(name, code, lines, speaker=r"\w+")
    return _final_state(figures_of(folder, name, targets), lines)


def _final_state(figures: dict[str, dict[str, Any]], lines: Sequence[str]) -> State[dict[str, dict[str, Any]]]:
    ran = [line.split("'")[1] for line in lines if line.startswith("Running stage '")]
    return Completed(data=figures, message=f"ran {', '.join(ran)}" if ran else "DVC had every stage in its cache")
