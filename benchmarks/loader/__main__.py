"""The loader on a generated corpus: one JSON object on stdout, progress on stderr.

    python -m benchmarks.loader                              # 1,000,000 utterances: 7 GB of disk for the time being
    python -m benchmarks.loader --utterances 20000 --small 2000

Utterances of 1.5 to 4.5 s, 8 levels of random codes at 75 frames a second; prompts of 1 to 3 s, inputs corrupted as in
training. What a figure is stands at its key; ``details`` holds what else was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.loader.corpus import Sizes, load, write
from vall_e.config import ModelConfig, TrainConfig
from vall_e.data.batches import POOL, Batches
from vall_e.data.corpus import CodesCorpus
from vall_e.data.samples import SampleMaker
from vall_e.models.packing import Packed
from vall_e.training.feed import Feed

FRAMES = 20_000  # positions in a batch
IN_STEP = 3 * POOL  # batches that are compared


def loader(corpus: CodesCorpus) -> Batches:
    """Plain ``tts``, a clip a sample."""
    train, model = TrainConfig(batch_frames=FRAMES), ModelConfig()
    maker = SampleMaker(corpus, train, model, Sizes().codes, 3, 0, 0.1, augment=True)
    return Batches(maker, train.batch_frames, train.seed)


def sample_seconds(batches: Batches, pools: Sequence[int]) -> list[float]:
    """Seconds a sample in each of ``pools``, one thread, from the mapped arrays to samples in batches."""
    took = []
    for pool in pools:
        began = time.perf_counter()
        batches.batch(pool * POOL)
        took.append((time.perf_counter() - began) / batches.samples_per_pool)
    return took


def feed(batches: Batches, first: int, last: int, workers: int) -> list[Packed]:
    made = Feed(batches, batches.maker.layout, first, last, workers)
    packed = list(made)
    made.close()
    return packed


def same(a: Sequence[Packed], b: Sequence[Packed]) -> bool:
    """All fields of all batches, in order."""
    fields = Packed.__dataclass_fields__
    return len(a) == len(b) and all(
        getattr(x, name).equal(getattr(y, name)) for x, y in zip(a, b, strict=True) for name in fields
    )


def measure(folder: Path, utterances: int, small: int, pools: int) -> dict[str, Any]:
    """All figures. The small corpus is measured in turns with the large one, pool by pool."""
    build = {}
    for name, count in (("small", small), ("large", utterances)):
        began = time.perf_counter()
        write(folder / name, count)
        written = time.perf_counter()
        load(folder / name)
        build[name] = round(time.perf_counter() - written, 1)
        print(f"{count} utterances: written in {written - began:.0f} s, mapped in {build[name]} s", file=sys.stderr)
    script = [sys.executable, "-m", "benchmarks.loader.opened", str(folder / "large")]
    opened = json.loads(subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout)
    large, little = loader(load(folder / "large")), loader(load(folder / "small"))
    took: dict[str, list[float]] = {"large": [], "small": []}
    for pool in range(1, pools + 1):
        took["large"] += sample_seconds(large, [pool])
        took["small"] += sample_seconds(little, [pool])
    each = {name: statistics.median(times) for name, times in took.items()}
    whole = feed(large, 0, IN_STEP, 0)
    middle = POOL + POOL // 2
    steps = [len(batch.symbol) for batch in whole]
    positions = sum(batch.symbol.numel() for batch in whole)
    return {
        "open_s": opened["open_s"],  # by a new process, of arrays that are made
        "open_mb": opened["open_mb"],  # growth of its resident set
        "samples_per_s": round(1 / each["large"]),  # median over pools
        "per_sample_1m_over_10k": round(each["large"] / each["small"], 3),
        # two worker processes, and one, give the batches of none in their order
        "two_workers_in_step": all(same(whole, feed(large, 0, IN_STEP, workers)) for workers in (1, 2)),
        # a new loader that begins in the middle of a pool
        "resume_identical": same(whole[middle:], feed(loader(load(folder / "large")), middle, IN_STEP, 2)),
        "details": {
            "utterances": opened["utterances"],
            "small": small,
            "build_s": build["large"],
            "disk_mb": round(sum(p.stat().st_size for p in (folder / "large/work").rglob("*.bin")) / 1e6),
            "rows_a_batch": round(float(np.mean(steps)), 1),
            "padding_share": round(1 - sum(int(b.lengths.sum()) for b in whole) / positions, 4),
            "rss_mb": round(psutil.Process().memory_info().rss / 1e6),  # mapped pages among it
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    out = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n")[0])
    out.add_argument("--utterances", type=int, default=1_000_000, metavar="N", help="default: %(default)s")
    out.add_argument("--small", type=int, default=10_000, metavar="N", help="beside it (default: %(default)s)")
    out.add_argument("--pools", type=int, default=12, metavar="N", help="timed of each (default: %(default)s)")
    out.add_argument("--folder", type=Path, metavar="DIR", help="for the generated corpus, in place of the system's")
    arguments = out.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        report = measure(Path(name), arguments.utterances, arguments.small, arguments.pools)
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
