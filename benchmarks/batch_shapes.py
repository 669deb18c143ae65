"""Milliseconds a training step with batches of any shape, and with batches of few shapes (``vall_e.data.batches``).

    python -m benchmarks.batch_shapes [STEPS]

On a CPU every new shape costs compiled kernels, and tensors of ever new sizes riddle the heap: steps grow slower and
slower. Clips of random codes, joined in twos to fives; 5.5M parameters, bf16. Each case runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.loader.corpus import TOKENIZER, Sizes, load, write
from vall_e.config import ModelConfig, TrainConfig
from vall_e.data import batches
from vall_e.data.corpus import CodesCorpus
from vall_e.data.samples import SampleMaker
from vall_e.models.packing import pack
from vall_e.models.vall_e import VallE
from vall_e.regimen import JoinConfig
from vall_e.training.feed import LENGTHS
from vall_e.training.optimizers import build_optimizer

SIZES = Sizes(levels=2, codes=512, seconds=(0.2, 0.5))
CLIPS, EVERY = 2000, 40


def run(few: bool, steps: int, corpus: CodesCorpus) -> None:
    """Train ``steps`` steps and print the pace of each ``EVERY``."""
    if not few:
        batches.ROWS = 1
    train = TrainConfig(batch_frames=2000, prompt_seconds=(0.4, 2.0), join=JoinConfig())
    model = VallE(ModelConfig(), SIZES.levels, SIZES.codes, len(TOKENIZER))
    optimizer = build_optimizer(model, train)
    maker = SampleMaker(corpus, train, model.config, SIZES.codes, 3, 0, 0.1, augment=True)
    source = batches.Batches(maker, train.batch_frames, 0)
    shapes, started, positions = set(), time.perf_counter(), 0
    for step in range(steps):
        packed = pack(source.batch(step), model.layout, LENGTHS if few else 1)
        shapes.add(tuple(packed.symbol.shape))
        positions += packed.symbol.numel()
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model.loss(packed, train.label_smoothing, train.alignment_weight)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % EVERY == 0:
            pace = (time.perf_counter() - started) / EVERY
            print(
                f"{'few' if few else 'any'} shapes, to step {step + 1}: {pace * 1000:.0f} ms a step, "
                f"{positions / EVERY:.0f} positions a step, {len(shapes)} shapes",
                flush=True,
            )
            started, positions = time.perf_counter(), 0


def main() -> None:
    if len(sys.argv) == 3:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), CLIPS, SIZES)
            run(sys.argv[1] == "few", int(sys.argv[2]), load(Path(folder)))
        return
    for case in ("any", "few"):
        steps = sys.argv[1] if len(sys.argv) > 1 else "160"
        subprocess.run([sys.executable, "-m", "benchmarks.batch_shapes", case, steps], check=True)


if __name__ == "__main__":
    main()
