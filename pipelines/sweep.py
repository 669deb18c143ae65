"""A sweep: experiments over a grid of parameters, each a sub-flow, one after another, all in one MLflow store.

``python -m pipelines.sweep 'codec.name=[mel, encodec]' 'model.kind=[ar, ar-depth]'``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pipelines.profile import read_setting
from vall_e.config import ConfigError

Point = dict[str, Any]
FIGURES = ("wer", "per", "similarity", "dnsmos")


class SweepFailed(RuntimeError):
    """Experiments of a sweep failed; the others are done and kept."""


def grid_points(grid: Mapping[str, Sequence[Any]], points: Sequence[Point] = ()) -> list[Point]:
    """Every combination of the grid's values; with ``points``, each of these with every combination over it.

    Raises:
        ConfigError: a key without values, or nothing to run.
    """
    for key, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"{key}: a sweep needs a list of values, as in {key}=[a, b], not {values!r}")
    if not grid and not points:
        raise ConfigError("a sweep needs keys with lists of values, as in 'train.max_steps=[500, 1000]'")
    rows = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return [{**point, **row} for point in (points or [{}]) for row in rows]


def parse_grid(settings: Sequence[str]) -> dict[str, list[Any]]:
    """``["model.kind=[ar, nar]"]`` → ``{"model.kind": ["ar", "nar"]}``; one value may stand without brackets."""
    grid: dict[str, list[Any]] = {}
    for setting in settings:
        key, values = read_setting(setting, repr(setting), "[value, value]")
        grid[key] = values if isinstance(values, list) else [values]
    return grid


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as Markdown."""
    if not rows:
        return ""
    keys = list(rows[0])
    lines = [f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
    lines += [f"| {' | '.join('' if row[key] is None else str(row[key]) for key in keys)} |" for row in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        grid = parse_grid(args.grid)
        if args.dry_run:
            return _dry_run(grid, args)
        from pipelines.sweep_flow import sweep
        from pipelines.workspace import WorkspaceBusy
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        sweep(
            grid,
            name=args.name,
            targets=args.target or None,
            temp=not args.in_workspace,
            again=args.again,
            figures=args.figure or list(FIGURES),
            retries=args.retries,
        )
    except (ConfigError, SweepFailed, WorkspaceBusy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _dry_run(grid: Mapping[str, Sequence[Any]], args: argparse.Namespace) -> int:
    from pipelines.experiment import check_points, experiment_name, experiment_names

    root, points = Path("."), grid_points(grid)
    check_points(root, points, not args.in_workspace)
    there = experiment_names(root)
    names = [experiment_name(root, args.name, point) for point in points]
    print(table([{"experiment": n, "there": n in there, **p} for n, p in zip(names, points, strict=True)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "grid", nargs="+", metavar="KEY=[A, B]", help="values of a parameter; profile=[...]: of profiles"
    )
    parser.add_argument("--name", default="sweep", help="begins the names of the experiments; a tag in MLflow")
    parser.add_argument("--target", action="append", metavar="STAGE", help="only this stage and what it needs")
    parser.add_argument("--figure", action="append", metavar="NAME", help=f"column of the table; {', '.join(FIGURES)}")
    parser.add_argument("--in-workspace", action="store_true", help="not in a copy of the project")
    parser.add_argument("--again", action="store_true", help="also what is there: the data changed, but not the commit")
    parser.add_argument("--retries", type=int, default=0, help="how often a failed experiment is started again")
    parser.add_argument("--dry-run", action="store_true", help="check and list the experiments; run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
