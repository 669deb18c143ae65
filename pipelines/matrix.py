"""One cell of a matrix: the pipeline with some parameters changed, in a workspace of its own.

``conf/matrix.yaml`` is a DVC pipeline with a stage for every codec and kind of model, each of which runs this:
``python -m pipelines.matrix mel-ar codec.name=mel model.kind=ar``. The workspace is a DVC project below
``.work/matrix`` with the project's cache, so cells share the stages that their parameters do not touch, and a cell
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.adapt import AdaptError, copy_code, found_from_afar, run, tracking_of
from pipelines.profile import overridden, parse_settings, write_params
from pipelines.watched import check_watched
from stages.origin import POINT_TAG
from vall_e.config import ConfigError, merge, parse_yaml


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the workspace, and of its figures: matrix/NAME.json")
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="over params.yaml, e.g. model.kind=ar")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stages are ended as well
    root = Path(".").resolve()
    workspace = root / ".work/matrix" / args.name
    try:
        prepare(root, workspace, args.settings)
        tags = {"sweep": "matrix", POINT_TAG: " ".join(args.settings)}
        run(workspace, cache=root / ".dvc/cache", tags=tags)
    except (ConfigError, AdaptError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (root / "matrix").mkdir(exist_ok=True)
    shutil.copyfile(workspace / "metrics/summary.json", root / "matrix" / f"{args.name}.json")
    return 0


def prepare(root: Path, workspace: Path, settings: Sequence[str]) -> None:
    """Make ``workspace`` a project with ``settings`` over the ``params.yaml`` of ``root``; its work so far stays.

    Raises:
        ConfigError: a key or a value is not valid.
    """
    text, override = (root / "params.yaml").read_text(encoding="utf-8"), parse_settings(settings)
    _, params = overridden(text, override)
    check_watched(root / params.ingest.path)
    override = merge(override, found_from_afar(root, merge(parse_yaml(text), override)))
    here = {"ingest": {"path": (root / params.ingest.path).resolve().as_posix()}}
    text, _ = overridden(text, merge(merge(override, here), {"tracking": {"uri": tracking_of(root)[0]}}))
    workspace.mkdir(parents=True, exist_ok=True)
    write_params(workspace, text)
    copy_code(root, workspace)


if __name__ == "__main__":
    sys.exit(main())
