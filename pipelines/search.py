"""A search: Optuna draws the parameters of experiments and learns from their figures.

``python -m pipelines.search --trials 10 --minimise wer train.lr=log:1e-4:1e-2 model.layers=int:2:8``

The study is kept in ``.work/optuna.db``: the same command goes on with a search that was stopped, and ``--trials``
counts all that it ever finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ruamel.yaml.error import YAMLError

from vall_e.config import ConfigError, parse_yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_EXPECTED = "expected section.key=log:LOW:HIGH, float:LOW:HIGH, int:LOW:HIGH[:STEP] or section.key=[a, b]"


class SearchFailed(RuntimeError):
    """No trial of a search has succeeded."""


def parse_space(settings: Sequence[str]) -> dict[str, BaseDistribution]:
    """What to draw each parameter from.

    Raises:
        ConfigError: a setting that is not in the grammar above, or bounds that are no interval.
    """
    space = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise ConfigError(f"{setting!r}: {_EXPECTED}")
        try:
            space[key] = _distribution(text)
        except (ValueError, TypeError, YAMLError) as error:
            raise ConfigError(f"{setting!r}: {_EXPECTED} ({error})") from None
    return space


def _distribution(text: str) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kind, _, bounds = text.partition(":")
    if kind in ("log", "float"):
        low, high = (float(bound) for bound in bounds.split(":"))
        return FloatDistribution(low, high, log=kind == "log")
    if kind == "int":
        return IntDistribution(*(int(bound) for bound in bounds.split(":")[:2]), step=_step(bounds))
    choices = parse_yaml(text)
    if not isinstance(choices, list):
        raise ValueError("no list")
    return CategoricalDistribution(choices)


def _step(bounds: str) -> int:
    rest = bounds.split(":")[2:]
    if len(rest) > 1:
        raise ValueError("too many bounds")
    return int(rest[0]) if rest else 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    args = _parser().parse_args(argv)
    figure, direction = (args.minimise, "minimize") if args.minimise else (args.maximise, "maximize")
    from pipelines.search_flow import search
    from pipelines.workspace import WorkspaceBusy

    try:
        search(
            args.space,
            figure,
            direction,
            args.trials,
            name=args.name,
            targets=args.target or None,
            temp=not args.in_workspace,
            seed=args.seed,
        )
    except (ConfigError, SearchFailed, WorkspaceBusy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("space", nargs="+", metavar="KEY=RANGE", help=_EXPECTED)
    parser.add_argument("--trials", type=int, default=10, help="trials in all, those of an earlier start included")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--minimise", metavar="FIGURE", help="wer, or any dotted name in metrics/*.json (train.loss)")
    goal.add_argument("--maximise", metavar="FIGURE", help="e.g. similarity")
    parser.add_argument("--name", default="search", help="names the study and its experiments; a tag in MLflow")
    parser.add_argument("--target", action="append", metavar="STAGE", help="only this stage and what it needs")
    parser.add_argument("--in-workspace", action="store_true", help="not in a copy of the project")
    parser.add_argument("--seed", type=int, default=0, help="of what Optuna draws")
    return parser


if __name__ == "__main__":
    sys.exit(main())
