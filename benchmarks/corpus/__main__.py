"""Data stages, measured: one JSON object on stdout, progress on stderr.

    python -m benchmarks.corpus --out /tmp/corpus             # everything, a few minutes on two cores
    python -m benchmarks.corpus --only kills --source espeak
    python -m benchmarks.corpus --only hours_per_hour --home /tmp/project       # in parts, on one corpus

The corpus is spoken digits of ``../shared/data`` or, where that is absent, speech of espeak-ng. What a figure is and
how it is measured stands at the function of its name; ``details`` holds what else was measured. Stages run as the
pipeline runs them, in a folder of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.corpus.bench import DIGITS, Bench, make_bench
from benchmarks.corpus.kills import kills
from benchmarks.corpus.loop import encode_over_loop
from benchmarks.corpus.stages import hours_per_hour
from benchmarks.corpus.workers import second_worker

TARGETS = {"encode_over_loop": 2.0, "second_worker": 1.7}
FIGURES: dict[str, Callable[[Bench], Any]] = {
    "hours_per_hour": hours_per_hour,
    "encode_over_loop": encode_over_loop,
    "second_worker": second_worker,
    "kills": kills,
}


def names(text: str) -> list[str]:
    """Keys in the order of the report, from a list with commas."""
    wanted = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := wanted - FIGURES.keys():
        raise argparse.ArgumentTypeError(f"no figure {', '.join(sorted(unknown))}: take {', '.join(FIGURES)}")
    return [name for name in FIGURES if name in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    commands = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=__doc__.split("\n")[0])
    default = "digits" if DIGITS.is_dir() else "espeak"
    commands.add_argument("--only", type=names, default=list(FIGURES), metavar="KEY,...", help=", ".join(FIGURES))
    commands.add_argument("--source", choices=("digits", "espeak"), default=default, help="default: %(default)s")
    commands.add_argument("--minutes", type=float, default=3.0, metavar="M", help="of digits (default: %(default)s)")
    commands.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="of each comparison (default: %(default)s)"
    )
    commands.add_argument(
        "--kills", type=int, default=5, metavar="N", help="runs that are killed (default: %(default)s)"
    )
    commands.add_argument("--home", type=Path, metavar="DIR", help="keep the corpus there, for a run of other figures")
    commands.add_argument("--out", type=Path, metavar="DIR", help="write corpus.json there")
    arguments = commands.parse_args(argv)
    if arguments.source == "digits" and not DIGITS.is_dir():
        commands.error(f"{DIGITS} is not there: take --source espeak")
    report: dict[str, Any] = {}
    with nullcontext(arguments.home) if arguments.home else tempfile.TemporaryDirectory() as home:
        where = Path(home).resolve()
        bench = make_bench(where, arguments.source, arguments.minutes, arguments.rounds, arguments.kills)
        with chdir(where):  # the manifest's paths begin there
            for name in arguments.only:
                print(f"{name} ...", file=sys.stderr, flush=True)
                report[name] = FIGURES[name](bench)
                print(f"  {report[name]}", file=sys.stderr, flush=True)
    run = {"source": arguments.source, "torch": torch.__version__, "numpy": np.__version__, "targets": TARGETS}
    text = json.dumps(report | {"details": bench.details | {"run": run}}, indent=1)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "corpus.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
