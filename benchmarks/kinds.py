"""Kinds of model compared on one corpus: one codec, the same test set, the same training time.

    python -m pipelines.repro similar --profile digits       # once: recordings to codes
    python -m benchmarks.kinds --profile digits --minutes 8  # then each kind is trained, heard and scored

Steps cost each kind different time, so each one's pace is measured first, with nothing else running, and its number of
steps follows from it; the schedule of the learning rate ends with the last step. The stages are the pipeline's own, so
every run stands in MLflow. The project's params.yaml and models/voice are those of the last kind afterwards.
Prints one JSON object: {"minutes", "kinds": {kind: {steps, seconds, wer, similarity, ...}}}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipelines.repro import prepare
from vall_e.codecs.base import load_codec
from vall_e.config import Params
from vall_e.family import KINDS
from vall_e.models.packing import pack
from vall_e.models.vall_e import VallE
from vall_e.text.tokenizer import Tokenizer
from vall_e.training.feed import LENGTHS
from vall_e.training.optimizers import build_optimizer
from vall_e.training.run import load_data

WARM = 20  # steps before the clock counts: kernels are compiled for the first shapes


def settings(kind: str, more: list[str]) -> list[str]:
    """``--set`` arguments that make a profile's model one of ``kind``."""
    return [f"model.kind={kind}", *([] if KINDS[kind].begins else ["model.alignment=false"]), *more]


def pace(params: Params, root: Path, steps: int) -> float:
    """Mean seconds of a training step on the real batches, those after the joining curriculum."""
    tokenizer = Tokenizer.load(root / "data/phonemize/tokenizer.json")
    codec = load_codec(params.codec, root / "models/codec")
    data, _ = load_data(params, root, tokenizer, codec, root / ".work")
    model = VallE(params.model, codec.levels, codec.codes, len(tokenizer), residual=codec.residual).train()
    optimizer, config, took = build_optimizer(model, params.train), params.train, []
    first = config.join.curriculum_steps if config.join is not None else 0
    for step in tqdm(
        range(first, first + WARM + steps), desc=f"pace of {params.model.kind}", unit="step", mininterval=1
    ):
        started = time.perf_counter()
        packed = pack(data.train_batches.batch(step), model.layout, LENGTHS)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16-mixed"):
            loss, _ = model.loss(packed, config.label_smoothing, config.alignment_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        took.append(time.perf_counter() - started)
    return statistics.fmean(took[WARM:])


def figures(root: Path) -> dict[str, Any]:
    """What the report's summary says of the run that just ended."""
    summary = json.loads((root / "metrics/summary.json").read_text())
    trained = json.loads((root / "metrics/train.json").read_text())
    out = {name: trained[name] for name in ("steps", "seconds_training", "parameters")}
    out |= {name: summary[name]["model"] for name in ("wer", "cer", "similarity", "dnsmos")}
    return out | {name: summary[name] for name in ("speaker_top1", "real_time_factor")}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kinds", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="digits", help="of conf/ (default: digits)")
    parser.add_argument(
        "--kinds", nargs="+", default=["ar-depth", "ar+nar", "ar+nar-len", "v2-ar"], choices=list(KINDS)
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="of training for each kind (default: 8)")
    parser.add_argument("--pace-steps", type=int, default=60, metavar="N", help="steps that the pace is the mean of")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every kind")
    arguments = parser.parse_args()
    root, found = Path("."), {}
    plans = {kind: settings(kind, arguments.set) for kind in arguments.kinds}
    paces = {
        kind: pace(prepare(root, arguments.profile, plan)[1], root, arguments.pace_steps)
        for kind, plan in plans.items()
    }
    for kind, plan in plans.items():
        steps = round(60 * arguments.minutes / paces[kind])
        run = [f"--set={item}" for item in (*plan, f"train.max_steps={steps}")]
        subprocess.run(
            [sys.executable, "-m", "pipelines.repro", "--profile", arguments.profile, *run],
            check=True,
            stdout=sys.stderr,
        )
        found[kind] = {"ms_per_step": round(1000 * paces[kind], 1)} | figures(root)
        print(kind, json.dumps(found[kind]), file=sys.stderr, flush=True)
    print(json.dumps({"minutes": arguments.minutes, "kinds": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
