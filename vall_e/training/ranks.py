"""Several processes that train one model: who this one is, how they are started, how they share a step.

Every process runs the whole program up to the optimiser's loop; rank 0 alone records and publishes. In a step each
takes a batch of its own (``Batches.share``), and the gradient is the mean of theirs: a process' loss is the mean over
its own targets, and every process counts alike, whatever the number of its targets.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from vall_e.regimen import TrainConfig


def rank_of(environ: Mapping[str, str] = os.environ) -> int:
    """Number of this process among those that train together, 0 where it is alone or starts the others."""
    return int(environ.get("RANK", environ.get("LOCAL_RANK", 0)))


def check_launch(config: TrainConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Compare what was started with what is asked for.

    Raises:
        ValueError: torchrun started other numbers, or nobody started what other machines have to do.
    """
    asked = (config.nodes, config.devices)
    command = f"torchrun --nnodes {config.nodes} --nproc-per-node {config.devices} -m stages.train"
    if "TORCHELASTIC_RUN_ID" in environ:
        local = int(environ["LOCAL_WORLD_SIZE"])
        started = (int(environ["WORLD_SIZE"]) // local, local)
        if started != asked:
            raise ValueError(
                f"torchrun started {started[0]} node(s) of {started[1]} processes, and train.nodes, train.devices are "
                f"{asked[0]}, {asked[1]}: start `{command}`, or change them"
            )
    elif config.nodes > 1:
        raise ValueError(
            f"train.nodes {config.nodes} needs a process on every machine: start `{command}` on each, with a common "
            "folder (docs/training.md, Several nodes)"
        )


def strategy_of(config: TrainConfig) -> Any:
    """What Lightning is given as its strategy.

    Raises:
        ValueError: the strategy needs a package that is not installed.
    """
    kind = config.strategy
    if kind == "auto":
        kind = "ddp" if config.devices * config.nodes > 1 else "one"
    if kind == "one":
        return "auto"
    if kind == "ddp":
        from lightning.pytorch.strategies import DDPStrategy

        return DDPStrategy(find_unused_parameters=True)  # a batch need not have every task, level and head
    if kind == "fsdp":
        from lightning.pytorch.strategies import ModelParallelStrategy

        world = config.devices * config.nodes
        return ModelParallelStrategy(world, 1, save_distributed_checkpoint=False)
    if find_spec("deepspeed") is None:
        raise ValueError(
            "train.strategy deepspeed needs the package deepspeed: pip install 'vall-e-workflow[deepspeed]', or take "
            "fsdp, which needs none"
        )
    from lightning.pytorch.strategies import DeepSpeedStrategy

    return DeepSpeedStrategy(stage=1, overlap_comm=False)


def seed_step(seed: int, step: int, rank: int = 0, world: int = 1) -> None:
    """Seed all global generators for a step: what a step draws depends on nothing that was drawn before."""
    number = (seed * 1_000_003 + step) * world + rank
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - of libraries that draw from the global generator
    random.seed(number)
