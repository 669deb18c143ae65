"""The flow of a search: a sub-flow for each trial of an Optuna study, which is kept in the workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.settings import use_local_prefect

use_local_prefect()

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_table_artifact  # noqa: E402
from prefect.states import Completed  # noqa: E402

from pipelines.experiment import check_points, experiment, said  # noqa: E402
from pipelines.figures import figure  # noqa: E402
from pipelines.search import SearchFailed, parse_space  # noqa: E402
from pipelines.sweep import table  # noqa: E402
from pipelines.workspace import workspace_lock  # noqa: E402
from stages.origin import POINT_TAG  # noqa: E402
from vall_e.config import ConfigError  # noqa: E402

if TYPE_CHECKING:
    from optuna import Study


@flow(name="vall-e-search", flow_run_name="{name}", persist_result=False)
def search(
    space: list[str],
    goal: str,
    direction: str = "minimize",
    trials: int = 10,
    name: str = "search",
    root: str = ".",
    targets: list[str] | None = None,
    temp: bool = True,
    seed: int = 0,
    timeout_seconds: float | None = None,
) -> dict[str, Any]:
    """Run trials until the study has ``trials`` finished ones.

    Args:
        space: ``section.key=RANGE`` as in ``pipelines.search``.
        goal: the figure to make small or large (``wer`` is ``summary.wer.model``).
        direction: ``minimize`` or ``maximize``.
        name: of the study; ``NAME-4`` is the experiment of trial 4.
        targets: these stages and what they need; all by default.
        temp: in copies of the project; False: in the workspace.
        seed: of what is drawn, with the number of the trial.
        timeout_seconds: what one trial may take.

    Returns:
        the best trial: ``experiment``, ``value`` and its parameters.

    Raises:
        ConfigError: a range that is none, or a study of this name that looked for something else.
        SearchFailed: no trial succeeded.
        WorkspaceBusy: another run holds the workspace.
    """
    folder, drawn = Path(root), parse_space(space)
    with workspace_lock(root):
        study = open_study(folder, name, direction, {"goal": goal, "space": sorted(space)})
        try:
            while (number := _next(study, drawn, trials, seed)) is not None:
                point = study.trials[number].params
                get_run_logger().info("trial %d of %d: %s", number + 1, trials, said(point))
                study.tell(
                    number, **_try(folder, f"{name}-{number}", point, goal, targets, temp, timeout_seconds, name)
                )
        finally:
            _leave(study, name, goal)
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        raise SearchFailed(f"none of {len(study.trials)} trials succeeded: see the log of {name}-0")
    best = {"experiment": f"{name}-{study.best_trial.number}", "value": study.best_value, **study.best_params}
    return Completed(data=best, message=f"best: {goal} {study.best_value:.4g} with {said(study.best_params)}")


def open_study(root: Path, name: str, direction: str, about: dict[str, Any]) -> Study:
    """The study of this name in ``.work/optuna.db``, made where there is none.

    Raises:
        ConfigError: it is there and looked for something else.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (root / ".work").mkdir(exist_ok=True)
    store = f"sqlite:///{(root / '.work' / 'optuna.db').resolve()}"
    study = optuna.create_study(storage=store, study_name=name, direction=direction, load_if_exists=True)
    about = {**about, "direction": direction}
    known = study.user_attrs.get("about", about)
    if known != about:
        raise ConfigError(f"the study {name} looked for {known}, not for {about}: give the new search another --name")
    study.set_user_attr("about", about)
    return study


def _next(study: Study, drawn: dict[str, Any], trials: int, seed: int) -> int | None:
    """The number of the trial to run: one that a killed search left, or a new one; None when there are enough."""
    from optuna.samplers import TPESampler

    for trial in study.trials:
        if trial.state.name == "RUNNING":
            return trial.number
    if (number := len(study.trials)) >= trials:
        return None
    study.sampler = TPESampler(seed=seed + number)
    return study.ask(drawn).number


def _try(
    root: Path,
    name: str,
    point: dict[str, Any],
    goal: str,
    targets: list[str] | None,
    temp: bool,
    timeout_seconds: float | None,
    study: str,
) -> dict[str, Any]:
    """Run a trial. Returns what the study is told: its value, or that it failed."""
    from optuna.trial import TrialState

    try:
        check_points(root, [point], temp)
    except ConfigError as error:  # what cannot work together was drawn
        get_run_logger().warning("%s: %s", name, error)
        return {"state": TrialState.FAIL}
    tags = {"sweep": study, POINT_TAG: said(point)}
    state = experiment(name, point, str(root), targets, temp, timeout_seconds, tags, return_state=True)
    if not state.is_completed():
        return {"state": TrialState.FAIL}
    try:
        return {"values": figure(state.result(), goal)}
    except ConfigError as error:  # of a stage that the targets do not need, or not measured
        get_run_logger().warning("%s: %s", name, error)
        return {"state": TrialState.FAIL}


def _leave(study: Study, name: str, goal: str) -> None:
    rows = [
        {"experiment": f"{name}-{trial.number}", "state": trial.state.name.lower(), goal: trial.value, **trial.params}
        for trial in study.trials
    ]
    if rows:
        create_table_artifact(rows, key="search", description="Trials and their figures")
        print(table(rows))
