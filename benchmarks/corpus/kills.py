"""Runs that are killed and go on."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.corpus.bench import Bench, begun, started
from benchmarks.corpus.stages import ready

COPIES = [0.9, 1.1]  # so that a run lasts
TRIES = 10  # to kill a run before it is over


def kills(bench: Bench) -> dict[str, Any]:
    """Encoding with one worker and with two in turn, killed (SIGKILL) at any moment of its work and run again: runs,
    whether all of them ended in the bytes of an undisturbed run, the most shards that were begun before a kill and
    again behind it, finished or not, and whether they were never more than the run had workers."""
    ready(bench)
    seconds = {workers: _undisturbed(bench, workers) for workers in range(1, 1 + min(2, bench.runs))}
    whole, seed = _bytes(bench.home / "whole"), random.SystemRandom().randrange(10**6)
    rng, identical, redone = random.Random(seed), 0, []
    for turn in range(bench.runs):
        workers, out = 1 + turn % 2, bench.home / "killed"
        moment, before = _killed(bench, workers, rng, seconds[workers])
        finished = len(list((bench.home / ".work-killed").glob("encode-*/shard-*.parquet")))
        _end(started(bench, workers, out, speeds=COPIES), "the run behind a kill")
        identical += _bytes(out) == whole
        again = len(set(before) & set(_shards(out)))
        redone.append({"workers": workers, "second": round(moment, 2), "finished": finished, "redone": again})
    bench.details["kills"] = {"seed": seed, "seconds": seconds, "runs": redone}
    return {
        "runs": bench.runs,
        "identical": identical == bench.runs,
        "shards_redone_max": max(item["redone"] for item in redone),
        "at_most_one_a_worker": all(item["redone"] <= item["workers"] for item in redone),
    }


def _undisturbed(bench: Bench, workers: int) -> float:
    """Seconds of a whole run's work, from the beginning of its first shard to the end of its last."""
    out = bench.home / "whole"
    for folder in (out, bench.home / ".work-whole"):
        shutil.rmtree(folder, ignore_errors=True)
    _end(started(bench, workers, out, speeds=COPIES), "the undisturbed run")
    return round(max(path.stat().st_mtime for path in out.glob("shard-*")) - min(_shards(out).values()), 2)


def _killed(bench: Bench, workers: int, rng: random.Random, seconds: float) -> tuple[float, dict[str, float]]:
    """Start a run and kill it at a moment of its work, which takes so many seconds; the moment, and what was begun.

    Raises:
        RuntimeError: every run was over before its moment had come.
    """
    out, work = bench.home / "killed", bench.home / ".work-killed"
    for _ in range(TRIES):
        for folder in (out, work):
            shutil.rmtree(folder, ignore_errors=True)
        process, moment = started(bench, workers, out, speeds=COPIES), rng.uniform(0.0, seconds)
        if _kill(process, out, moment):
            return moment, _shards(out)
    raise RuntimeError(f"{TRIES} runs ended before they were killed: take more --minutes")


def _kill(process: subprocess.Popen, out: Path, seconds: float) -> bool:
    """Kill so many seconds after the first shard is begun; its workers follow it. False: it was done before."""
    while process.poll() is None and not begun(out).is_file():
        time.sleep(0.005)
    time.sleep(seconds)
    running = process.poll() is None
    family = psutil.Process(process.pid).children(recursive=True) if running else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=10)
    return running and not out.exists()


def _shards(out: Path) -> dict[str, float]:
    """When a run into ``out`` began its shards, by name."""
    lines = begun(out).read_text(encoding="utf-8").splitlines() if begun(out).is_file() else []
    return {name: float(when) for when, name in map(str.split, lines)}


def _end(process: subprocess.Popen, what: str) -> None:
    if process.wait():
        raise RuntimeError(f"{what} failed with {process.returncode}")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
