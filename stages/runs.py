"""``vall-e runs``: the trainings that MLflow holds: listed, compared, and where their data came from."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import tracking
from stages.compare import as_csv, as_table, differences, row_of
from stages.lineage import INPUT, MODEL, ancestors, runs_of_commit, tagged, trainings_of
from vall_e.config import ConfigError, TrackingConfig, load_params
from vall_e.usage import UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NAMED = "the first characters of a run's id, NAME@champion, NAME/VERSION of a registered model, or a git commit"
_DIGEST = 12  # characters of a digest for people


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code. Raises UsageError for wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        config = load_params(arguments.params).tracking
    except ConfigError as error:
        raise UsageError(str(error)) from None
    client, experiments = _open(config, Path("."))
    arguments.run(arguments, client, experiments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vall-e runs", description=__doc__.split(": ", 1)[1].capitalize())
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="says where the records are")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    last = actions.add_parser("list", help="the last trainings, newest first")
    compare = actions.add_parser("compare", help="trainings beside one another, and the parameters that differ")
    compare.add_argument("runs", nargs="*", metavar="RUN", help=f"{NAMED}; by default the last ones")
    for action, count in ((last, 20), (compare, 5)):
        action.add_argument("-n", "--last", type=int, default=count, metavar="N", help=f"default: {count}")
        form = action.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="a JSON object: runs, differences")
        form.add_argument("--csv", action="store_true", help="a line a run")
        action.set_defaults(run=_compare, runs=[], differ=action is compare)
    show = actions.add_parser("show", help="one run: its commit, its data, and what was made from it")
    show.add_argument("name", metavar="RUN", help=NAMED)
    show.set_defaults(run=_show)
    return parser


def _open(config: TrackingConfig, root: Path) -> tuple[MlflowClient, list[str]]:
    database = tracking.store_uri(config, root).removeprefix("sqlite:///")
    if "://" not in database and not Path(database).is_file():
        raise UsageError(f"no records in {database}: `dvc repro` makes them (tracking.uri names another store)")
    client, _ = tracking.open_store(config, root)
    return client, tracking.experiments(client, config)


def _compare(arguments: argparse.Namespace, client: MlflowClient, experiments: list[str]) -> None:
    if arguments.last < 1:
        raise UsageError(f"--last {arguments.last}: at least one")
    if arguments.runs:
        runs = [find_run(client, experiments, name) for name in arguments.runs]
    else:
        which = "tags.stage = 'train' and attributes.status != 'FAILED'"
        runs = list(client.search_runs(experiments, which, max_results=arguments.last, order_by=["start_time DESC"]))
        runs = [run for run in runs if run.data.tags.get("cached") != "true"]
    if not runs:
        raise UsageError("no training is recorded yet: `dvc repro` trains and records")
    rows = [row_of(run, _aliases(client, runs)) for run in runs]
    differ = differences(rows) if arguments.differ else {}
    if arguments.json:
        print(json.dumps({"runs": rows, "differences": differ}, indent=2, ensure_ascii=False))
    else:
        print(as_csv(rows, differ) if arguments.csv else as_table(rows, differ), end="" if arguments.csv else "\n")


def _show(arguments: argparse.Namespace, client: MlflowClient, experiments: list[str]) -> None:
    run = find_run(client, experiments, arguments.name)
    tags = run.data.tags
    print(f"{run.info.run_id}  {run.info.run_name}  {run.info.status}")
    changed = " + changes" if tags.get("git.changed") == "true" else ""
    keys = {"commit": "mlflow.source.git.commit", "dvc.lock": "digest.dvc.lock", "gates": "gates"}
    for name, key in keys.items():
        if key in tags:
            print(f"{name:<10}{tags[key]}{changed if name == 'commit' else ''}")
    for path, digest in tagged(run, INPUT):
        print(f"read      {path}  {digest[:_DIGEST]}")
    for before in ancestors(client, run.info.run_id):
        print(f"from      {before.info.run_id}  {before.info.run_name}")
    for training in trainings_of(client, run):
        print(f"trained   {training.info.run_id}  {training.info.run_name}{_models(client, training)}")
    if models := _models(client, run):
        print(f"model    {models}")


def _models(client: MlflowClient, run: Run) -> str:
    aliases = _aliases(client, [run])
    return "".join(f" {model}" for model in row_of(run, aliases)["model"])


def _aliases(client: MlflowClient, runs: Sequence[Run]) -> dict[tuple[str, str], list[str]]:
    """Aliases by name and version of the registered models that the runs made."""
    from mlflow.exceptions import MlflowException

    found: dict[tuple[str, str], list[str]] = {}
    for name in {name.rpartition(".")[0] for run in runs for name, _ in tagged(run, MODEL)}:
        try:
            for alias, version in client.get_registered_model(name).aliases.items():
                found.setdefault((name, str(version)), []).append(alias)
        except MlflowException:  # deleted since
            continue
    return found


def find_run(client: MlflowClient, experiments: Sequence[str], name: str) -> Run:
    """The run that a person means; see ``NAMED``. Raises UsageError where there is none, or more than one."""
    from mlflow.exceptions import MlflowException

    model, at, alias = name.partition("@")
    try:
        if at:
            return client.get_run(client.get_model_version_by_alias(model, alias).run_id)
        if "/" in name:
            return client.get_run(client.get_model_version(*name.rsplit("/", 1)).run_id)
    except MlflowException as error:
        raise UsageError(f"{name}: {error.message}") from None
    found: list[Any] = []
    if re.fullmatch(r"[0-9a-f]{4,32}", name):
        found = list(client.search_runs(list(experiments), f"attributes.run_id LIKE '{name}%'", max_results=5))
    found = found or runs_of_commit(client, experiments, Path("."), name)
    if not found:
        raise UsageError(f"{name!r} names no run: give {NAMED} (`vall-e runs list`)")
    if len(found) > 1:
        several = ", ".join(f"{run.info.run_id[:_DIGEST]} ({run.info.run_name})" for run in found)
        raise UsageError(f"{name}: several runs are meant, name one of {several}")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
