"""Run the pipeline once, without a server set up by hand: ``python -m pipelines.repro [STAGE]``.

With ``--profile`` the parameters become the committed ``params.yaml`` with ``conf/PROFILE.yaml`` over it; with
``--set`` single keys change. Without either, ``params.yaml`` is run as it stands.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from pipelines.profile import prepare
from pipelines.watched import check_watched
from vall_e.config import ConfigError, Params


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    args = _parser().parse_args(argv)
    root = Path(".")
    try:
        _, params = prepare(root, args.profile, args.set)
        check_watched(root / params.ingest.path, root)
        if args.dry_run:
            return _dry_run(params, args.stage)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from pipelines.command import StageFailed
    from pipelines.flow import pipeline
    from pipelines.process import StepTimeout
    from pipelines.workspace import WorkspaceBusy

    try:
        pipeline([args.stage] if args.stage else None, profile=args.profile, settings=args.set, retries=args.retries)
    except (StageFailed, StepTimeout, WorkspaceBusy, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _dry_run(params: Params, stage: str | None) -> int:
    from pipelines.dag import stage_order

    print(f"profile {params.profile}: parameters are valid")
    order = stage_order(".", [stage] if stage else [])
    print("stages: " + " → ".join(order))
    if "train" in order:
        from vall_e.training.plan import describe

        print(yaml.safe_dump({"train": describe(params)}, sort_keys=False, allow_unicode=True), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.repro", description=__doc__)
    parser.add_argument("stage", nargs="?", metavar="STAGE", help="run only what this stage needs, and it")
    parser.add_argument("--profile", help="demo, a file of conf/ without .yaml, or A+B; into params.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. train.max_steps=500")
    parser.add_argument("--retries", type=int, default=1, help="how often a crashed stage is started again")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the parameters, show shapes, memory and steps; run nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
