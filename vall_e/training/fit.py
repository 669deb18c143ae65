"""Run the optimiser until the last step, from the last whole checkpoint where there is one.

A "Lightning epoch" here is the stretch of steps between two checkpoints. Batches, dropout and corruption are functions
of (seed, step) alone, so a run that was killed goes on from its last checkpoint and ends as if nothing had happened. A
step that diverged, or that did not fit into memory, takes it back to that checkpoint with another ``Course``.
"""

from __future__ import annotations

import gc
import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vall_e.config import Params, TrainConfig
from vall_e.corpus.work import WorkFolder
from vall_e.models.vall_e import VallE
from vall_e.training.average import Average
from vall_e.training.checkpoints import Checkpoints, Direct, find, step_back
from vall_e.training.compiling import compile_blocks, verdict
from vall_e.training.course import Course, CourseError, Diverged
from vall_e.training.curves import Curves, Log
from vall_e.training.distill import Teacher
from vall_e.training.feed import Data
from vall_e.training.guard import Guard, Stop
from vall_e.training.memory import is_memory_error
from vall_e.training.module import VallEModule
from vall_e.training.ranks import check_launch, rank_of, strategy_of
from vall_e.training.samples import Samples, Show
from vall_e.training.sharding import ShardedModule, UnchangedInput, exact_state, whole_state
from vall_e.training.unfinished import work_folder


@dataclass(frozen=True)
class Fitted:
    """A run that reached its last step.

    Attributes:
        weights: the voice's state dict; of several processes only rank 0 is sure to have it.
        compiled: the blocks of the backbone were.
    """

    curves: Curves
    work: WorkFolder
    course: Course
    weights: dict[str, Tensor]
    compiled: bool


def fit(
    params: Params,
    model: VallE,
    data: Data,
    root: Path,
    work_root: Path,
    log: Log | None,
    teacher: Teacher | None = None,
    live: Path | None = None,
    show: Show | None = None,
) -> Fitted:
    """Train ``model`` in place; arguments are those of ``train``.

    Raises:
        CourseError: it diverges whatever the rate, or the model or one row does not fit into memory.
        CheckpointError: no room for a checkpoint.
        KeyboardInterrupt: it was stopped before the last step.
    """
    config = params.train
    if config.precision == "16-mixed" and not torch.cuda.is_available():
        raise ValueError("train.precision 16-mixed needs a GPU (CUDA), and there is none: take bf16-mixed or 32-true")
    if config.threads:
        torch.set_num_threads(config.threads)
    check_launch(config)
    work = work_folder(params, root, work_root)
    course = Course.load(work.path / "course.json")
    compiled = verdict(config, params.model, sum(p.numel() for p in model.parameters())).compiles
    module = (ShardedModule if config.strategy == "fsdp" else VallEModule)(model, config, teacher)
    if compiled:
        compile_blocks(model.backbone)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with Stop() as stop, course.under_way() if rank_of() == 0 else nullcontext():
        catch_up = True
        while True:
            curves = Curves(work.path / "train.csv", config.max_steps, log, live and live / "train.csv", catch_up)
            catch_up = False
            guard, average = Guard(config, course, stop), Average(config.ema_decay)
            watching: list[Callback] = [guard] + [average] * (not config.shares_weights)
            if rank_of() == 0:
                watching.append(curves)
                if show is not None and config.samples is not None:
                    watching.append(Samples(config, average, curves, show, (live or work.path) / "samples"))
            trainer = _trainer(config, work, course, watching)
            if _run(trainer, module, data, work, course, guard):
                break
            del trainer
            module.zero_grad()  # gradients there tell torch that an optimiser has state already
            gc.collect()  # what the failed step holds, before the next begins
            torch.cuda.empty_cache()
    if trainer.global_step < config.max_steps:
        raise KeyboardInterrupt(f"stopped at step {trainer.global_step} of {config.max_steps}: run again to go on")
    if config.shares_weights:
        whole = exact_state if config.strategy == "deepspeed" else whole_state
        return Fitted(curves, work, course, whole(model), compiled)
    average.take_over(module)
    return Fitted(curves, work, course, model.state_dict(), compiled)


def _trainer(config: TrainConfig, work: WorkFolder, course: Course, watching: list[Callback]) -> pl.Trainer:
    deepspeed = config.strategy == "deepspeed"  # writes checkpoints of its own
    return pl.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[config.device], devices=config.devices,
        num_nodes=config.nodes, strategy=strategy_of(config), precision=None if deepspeed else config.precision,
        max_steps=config.max_steps, max_epochs=-1, accumulate_grad_batches=config.accumulate * course.pieces,
        gradient_clip_val=config.grad_clip, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0,
        callbacks=[*watching, Checkpoints(work.path)], logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=work.path,
        plugins=[UnchangedInput(config.precision) if deepspeed else Direct()],
    )  # fmt: skip


def _start_again(work: WorkFolder, course: Course) -> int:
    """Step of the checkpoint to go back to; one that was gone back to before is dropped: it may be what is wrong."""
    _, start = find(work.path)
    if course.went_back_to(start):
        step_back(work.path)
        _, start = find(work.path)
    return start


def _too_large(module: VallEModule) -> str:
    """What to say where there was no room before the first batch came."""
    count, teacher = sum(p.numel() for p in module.model.parameters()), module.teacher
    beside = ""
    if teacher is not None:
        beside = f", its teacher another {sum(p.numel() for p in teacher.model.parameters()):,} (train.distill)"
    return (
        f"out of memory before the first batch: the model has {count:,} parameters (training keeps about five numbers "
        f"for each){beside}: make the model smaller, end what else uses the memory, or share the weights between GPUs "
        "(train.strategy fsdp)"
    )


def _run(trainer: pl.Trainer, module: VallEModule, data: Data, work: WorkFolder, course: Course, guard: Guard) -> bool:
    """Train from the last whole checkpoint on; false where the course was changed and it has to begin anew."""
    found, config = find(work.path), module.config
    data.pieces = course.pieces
    try:
        # Our own checkpoint, in a folder keyed by our own inputs: pickled optimiser state is welcome here only.
        trainer.fit(module, data, ckpt_path=found[0] if found else None, weights_only=False)
        return True
    except Diverged as seen:
        start = _start_again(work, course) if trainer.is_global_zero else 0
        said = course.roll_back(seen, trainer.strategy.broadcast(start), config.rollback)
    except Exception as error:
        if not is_memory_error(error):
            raise
        if guard.shape == (0, 0):
            raise CourseError(_too_large(module)) from error
        _, start = find(work.path)
        said = course.halve(guard.shape, start)
        if trainer.world_size > 1:  # the others wait in the middle of a step
            course.save()
            raise CourseError(f"{said}. Run again: all {trainer.world_size} processes go on so") from error
    if trainer.is_global_zero:
        course.save()
        print(said, file=sys.stderr, flush=True)
    return False
