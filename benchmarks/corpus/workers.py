"""What a second worker gains."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time

from benchmarks.corpus.bench import Bench, started
from benchmarks.corpus.stages import ready


def second_worker(bench: Bench) -> float:
    """Seconds of a shard's work with one worker over those with two, between the first shard and the last, so that
    starting processes does not count. ``machine`` is the same for two processes that only count, which is as much as
    these cores can give. Target: at least 1.7."""
    ready(bench)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(bench.rounds):
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            rates[workers].append(_rate(bench, workers))
    alone, both = (statistics.median(_spin(count) for _ in range(bench.rounds)) for count in (1, 2))
    bench.details["second_worker"] = {"shards_per_s": rates, "machine": 2 * alone / both, "cores": os.cpu_count()}
    return statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))


def _rate(bench: Bench, workers: int) -> float:
    """Shards a second, once every worker has finished its first one."""
    folder = bench.home / f"rate-{workers}"
    for old in (folder, bench.home / f".work-{folder.name}"):
        shutil.rmtree(old, ignore_errors=True)
    process = started(bench, workers, folder, speeds=[0.9, 1.1, 0.95, 1.05])
    times: dict[str, float] = {}
    while process.poll() is None:
        for path in (bench.home / f".work-{folder.name}").glob("encode-*/shard-*.parquet"):
            times.setdefault(path.name, time.perf_counter())
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"encoding with {workers} workers failed with {process.returncode}")
    ordered = sorted(times.values())
    return (len(ordered) - workers) / (ordered[-1] - ordered[workers - 1])


def _spin(count: int) -> float:
    """Wall seconds until ``count`` processes have each counted to the same number."""
    script = "import time; t = time.time(); sum(i * i for i in range(12_000_000)); print(time.time() - t)"
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return statistics.mean(float(process.communicate()[0]) for process in running)
