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

from benchmarks.corpus.bench import SHARDS, Bench, started
from benchmarks.corpus.stages import ready

COPIES = [0.9, 1.1]  # so that a run lasts
TRIES = 10  # to kill a run before it is over


def kills(bench: Bench) -> dict[str, Any]:
    """Encoding with one worker and with two in turn, killed (SIGKILL) at a random moment and run again: runs, whether
    all of them ended in the bytes of an undisturbed run, and the most shards of a worker that one kill cost: the one
    that it was at, and those that were finished and yet done again."""
    ready(bench)
    _end(started(bench, 1, bench.home / "whole", speeds=COPIES), "the undisturbed run")
    whole = _bytes(bench.home / "whole")
    rng, identical, redone = random.Random(0), 0, []
    for turn in range(bench.runs):
        workers = 1 + turn % 2
        done = _killed(bench, workers, rng)
        _end(started(bench, workers, bench.home / "killed", speeds=COPIES), "the run behind a kill")
        identical += _bytes(bench.home / "killed") == whole
        again = sum((bench.home / "killed" / name).stat().st_ino != inode for name, inode in done.items())
        redone.append({"workers": workers, "finished": len(done), "finished_done_again": again})
    bench.details["kills"] = redone
    return {
        "runs": bench.runs,
        "identical": identical == bench.runs,
        "shards_redone_max": max(1 + item["finished_done_again"] for item in redone),
    }


def _killed(bench: Bench, workers: int, rng: random.Random) -> dict[str, int]:
    """Start a run and kill it; the finished shards that it left, and their inodes.

    Raises:
        RuntimeError: every run was over before its moment had come.
    """
    out, work = bench.home / "killed", bench.home / ".work-killed"
    for _ in range(TRIES):
        for folder in (out, work):
            shutil.rmtree(folder, ignore_errors=True)
        process = started(bench, workers, out, speeds=COPIES)
        _kill(process, work, rng.randrange(1, SHARDS - workers), rng.uniform(0.0, 0.2))
        if done := {path.name: path.stat().st_ino for path in _finished(work)}:
            return done
    raise RuntimeError(f"{TRIES} runs ended before they were killed: take more --minutes")


def _kill(process: subprocess.Popen, work: Path, shards: int, seconds: float) -> None:
    """Kill so many seconds after so many shards are finished; its workers follow it."""
    while process.poll() is None and not (work.is_dir() and len(_finished(work)) >= shards):
        time.sleep(0.005)
    time.sleep(seconds)
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=10)


def _finished(work: Path) -> list[Path]:
    return list(work.glob("encode-*/shard-*.parquet"))


def _end(process: subprocess.Popen, what: str) -> None:
    if process.wait():
        raise RuntimeError(f"{what} failed with {process.returncode}")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
