"""Training, measured: one JSON object on stdout, progress on stderr.

    python -m benchmarks.train                               # encodes spoken digits first: half an hour on two cores
    python -m benchmarks.train --project DIR                 # what the stages left there: a few minutes
    python -m benchmarks.train --project DIR --rounds 3

Model and training are those of conf/digits.yaml, blocks compiled where a whole training of it would compile them; what
compiling takes does not count. What a figure is stands at its key; ``details`` holds what else was
measured. Rounds of the comparison are interleaved, and both loops learn from the same samples in each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch

from benchmarks.train.flops import peak, useful
from benchmarks.train.rounds import build, compiles, run
from vall_e.config import Params, merge, parse_params, read_yaml
from vall_e.data.batches import POOL
from vall_e.memory import peak_mb
from vall_e.models.packing import Packed, pack
from vall_e.training.feed import LENGTHS, Data

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"over_hf_padded": (">=", 1.5), "loader_share": ("<=", 0.03)}
WARM_UP = 1  # rounds that do not count


def pool(data: Data, number: int) -> list[Packed]:
    """Batches of a round as the loader packs them."""
    steps = range(number * POOL, (number + 1) * POOL)
    return [pack(data.train_batches.batch(step), data.layout, LENGTHS) for step in steps]


def alone(params: Params, root: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Figures of training by itself."""
    model, data = build(params, root, work)
    found = run(params, model, data, rounds + WARM_UP)
    seconds = found.seconds[WARM_UP:]
    batches = [pool(data, number) for number in range(WARM_UP, rounds + WARM_UP)]
    real = [sum(int(b.lengths.sum()) for b in made) for made in batches]
    dtype = torch.float32 if params.train.precision == "32-true" else torch.bfloat16
    able = peak(dtype)
    shares = [useful(model, made) / took / able for made, took in zip(batches, seconds, strict=True)]
    return {
        "steps_per_s": round(POOL / statistics.median(seconds), 3),  # of the optimiser, median over rounds
        "tokens_per_s": round(statistics.median(n / took for n, took in zip(real, seconds, strict=True)), 1),
        "loader_share": round(sum(found.waited[WARM_UP:]) / sum(seconds), 4),  # of the time, in which training waited
        "peak_mb": round(peak_mb(torch.device("cpu"))),  # of this process, most that was resident
        "mfu": round(statistics.median(shares), 4),  # share of the peak that useful operations reach
        "details": {
            "peak_gflops": round(able / 1e9, 1),
            "compiled": compiles(params, model),
            "parameters": sum(p.numel() for p in model.parameters()),
            "rows_a_batch": round(statistics.mean(len(b.lengths) for made in batches for b in made), 1),
            "padding_share": round(1 - sum(real) / sum(b.symbol.numel() for made in batches for b in made), 4),
        },
    }


def compared(params: Params, root: Path, work: Path, rounds: int) -> tuple[float, dict[str, Any]]:
    """Median over rounds of the seconds of the padded loop over ours, each on the samples of one pool: with the
    attention that ``transformers`` takes by itself, and in the details with each kind. The peer's batches are made
    beforehand, and it keeps no average of its weights."""
    from benchmarks.train.peer import ATTENTION, DEFAULT, Loop, padded, tokens

    model, data = build(params, root, work)
    loops = {name: Loop(model, params.train, name) for name in ATTENTION}
    theirs: dict[str, list[float]] = {name: [] for name in loops}
    waste: list[float] = []

    def turn(number: int) -> None:
        mine = pool(data, number)
        samples = [s for k in range(POOL) for s in data.train_batches.batch(number * POOL + k)]
        room = max(batch.symbol.numel() for batch in mine)
        batches = padded(samples, data.layout, room, number)
        assert tokens(batches) == tokens(mine)
        waste.append(1 - tokens(batches) / sum(batch.symbol.numel() for batch in batches))
        for name, loop in loops.items():
            began = time.perf_counter()
            loop.steps(batches)
            theirs[name].append(time.perf_counter() - began)

    ours = run(params, model, data, rounds + WARM_UP, turn).seconds[WARM_UP:]
    ratios = {name: [a / b for a, b in zip(took[WARM_UP:], ours, strict=True)] for name, took in theirs.items()}
    over = {name: round(statistics.median(found), 3) for name, found in ratios.items()}
    return over[DEFAULT], {
        "attention": DEFAULT,
        "over": over,
        "ratios": {name: [round(ratio, 3) for ratio in found] for name, found in ratios.items()},
        "padding_share": round(statistics.mean(waste), 4),
    }


def measure(params: Params, root: Path, rounds: int) -> dict[str, Any]:
    """All figures of training on what the stages left under ``root``."""
    if params.train.threads:
        torch.set_num_threads(params.train.threads)
    with tempfile.TemporaryDirectory() as name:
        report = alone(params, root, Path(name), rounds)
        print(f"{report}", file=sys.stderr, flush=True)
        ratio, found = compared(params, root, Path(name), rounds)
    run_facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "precision": params.train.precision}
    details = report.pop("details") | {"over_hf_padded": found, "run": run_facts, "targets": TARGETS}
    # tokens a second over those of the padded loop over transformers' LlamaModel as it comes
    return report | {"over_hf_padded": ratio, "details": details}


def digits(home: Path) -> None:
    """Spoken digits, encoded as the pipeline does it, in the folder ``home``."""
    from benchmarks.corpus.bench import make_bench
    from benchmarks.corpus.stages import ready

    with chdir(home):
        ready(make_bench(home, "digits", 20.0, 1, 1))


def main(argv: Sequence[str] | None = None) -> int:
    out = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.split("\n")[0])
    out.add_argument("--project", type=Path, metavar="DIR", help="a folder in which the stages before train were run")
    out.add_argument("--profile", type=Path, default=ROOT / "conf/digits.yaml", metavar="FILE", help="of model, train")
    out.add_argument("--rounds", type=int, default=5, metavar="N", help=f"of {POOL} steps (default: %(default)s)")
    out.add_argument("--threads", type=int, default=0, metavar="N", help="of torch; 0: its choice")
    arguments = out.parse_args(argv)
    raw = merge(read_yaml(ROOT / "params.yaml"), read_yaml(arguments.profile))
    params = parse_params(merge(raw, {"train": {"samples": None, "threads": arguments.threads, "device": "cpu"}}))
    with tempfile.TemporaryDirectory() as name:
        home = arguments.project or Path(name)
        if arguments.project is None:
            digits(home)
        elif not (home / "models/codec").is_dir():
            out.error(f"{home}/models/codec is not there: run `dvc repro similar` in it, or leave --project out")
        report = measure(params, home.resolve(), arguments.rounds)
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
