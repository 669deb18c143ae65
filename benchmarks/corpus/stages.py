"""The stages before training, each run as the pipeline runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import yaml

from benchmarks.corpus.bench import ROOT, Bench


def ready(bench: Bench) -> None:
    """Run the stages, unless they were run."""
    if not bench.phones.is_file() or not (bench.home / "models/codec").is_dir():
        hours_per_hour(bench)


def data_stages() -> list[str]:
    """Stages before training, in the order of ``dvc.yaml``."""
    names = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    return names[: names.index("train")]


def hours_per_hour(bench: Bench) -> dict[str, float]:
    """Hours of kept recordings that each data stage works on in an hour, by the seconds that the stage itself
    reports: models are loaded within, the interpreter is not."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    seconds = {}
    for name in data_stages():
        command = [sys.executable, "-m", f"stages.{name}"]
        done = subprocess.run(command, cwd=bench.home, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"stage {name} failed:\n{done.stderr[-2000:]}")
        seconds[name] = json.loads((bench.home / f"metrics/{name}.json").read_text(encoding="utf-8"))["seconds"]
        print(f"  {name} {seconds[name]:.1f} s", file=sys.stderr, flush=True)
    hours = sum(pq.read_table(bench.manifest, columns=["seconds"])["seconds"].to_pylist()) / 3600
    bench.details["hours_per_hour"] = {"hours": hours, "seconds": seconds, "workers": bench.params.executor.workers}
    return {name: hours / (took / 3600) for name, took in seconds.items() if took > 0}
