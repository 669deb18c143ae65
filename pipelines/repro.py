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

from pipelines.profile import (
    committed_params,
    overridden,
    parse_settings,
    profile_overrides,
    write_params,
)
from vall_e.config import ConfigError, Params, merge


def prepare(root: Path, profile: str | None, settings: Sequence[str]) -> tuple[str, Params]:
    """The text of ``params.yaml`` for a run, and the validated parameters. Nothing is written.

    Raises:
        ConfigError: an unknown profile, key or value.
    """
    override = parse_settings(settings)
    if profile is None:
        path = root / "params.yaml"
        if not path.is_file():
            raise ConfigError(f"{path.resolve()}: no such file (run from the project's folder)")
        return overridden(path.read_text(encoding="utf-8"), override)
    return overridden(committed_params(root), merge(profile_overrides(root, profile), override))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    args = _parser().parse_args(argv)
    root = Path(".")
    try:
        text, params = prepare(root, args.profile, args.set)
        if args.dry_run:
            return _dry_run(params, args.stage)
        if args.profile or args.set:
            write_params(root, text)
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from pipelines.flow import StageFailed, WorkspaceBusy, pipeline
    from pipelines.process import StepTimeout

    try:
        pipeline([args.stage] if args.stage else None, profile=params.profile, retries=args.retries)
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
    parser.add_argument("--profile", help="demo, or a file of conf/ without .yaml; written into params.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. train.max_steps=500")
    parser.add_argument("--retries", type=int, default=1, help="how often a crashed stage is started again")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the parameters, show shapes, memory and steps; run nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
