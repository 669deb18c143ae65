"""Watches every optimiser step: numbers that are none, jumps of the loss, and a signal to stop.

Losses and gradient norms stay on their device and are looked at every ``EVERY`` steps and before each checkpoint, so
that a GPU need not wait in between; all processes look at the same means and decide alike.
"""

from __future__ import annotations

import math
import signal
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from statistics import median
from typing import Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vall_e.regimen import TrainConfig
from vall_e.training.course import Course, Diverged

EVERY = 10  # steps between looks
WINDOW, FEWEST = 64, 16  # losses that a jump is measured against: at most, at least
JUMP = 1.0  # nats above the median that a jump has at least: near 0, multiples say nothing


class Stop:
    """Whether somebody asked the process to end: the first SIGTERM or SIGINT (Ctrl-C) is noted, the next one is as it
    was before. As a context it hands the signals back at its end."""

    def __init__(self) -> None:
        self.asked = False
        found = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}
        # what a shell starts in the background does not hear Ctrl-C, and is to go on
        self.before = {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self.before)

    def listen(self) -> None:
        """In the place of Lightning's own handlers: for SIGTERM it breaks off in the middle of a validation, at SIGINT
        it ends without a checkpoint."""
        self._set(dict.fromkeys(self.before, self._note))

    def _note(self, number: int, *_: Any) -> None:
        name = signal.Signals(number).name
        print(f"train: {name}: a checkpoint after this step, then the end", file=sys.stderr, flush=True)
        self.asked = True
        self._set(self.before)

    @staticmethod
    def _set(handlers: Mapping[int, Any]) -> None:
        with suppress(ValueError):  # only a main thread can listen
            for number, handler in handlers.items():
                signal.signal(number, handler)


class Guard(Callback):
    """Raises ``Diverged``; lowers the rates as the course says; ends the run behind a step when asked.

    Attributes:
        shape: rows and positions of the batch (or piece) that is being worked on.
    """

    def __init__(self, config: TrainConfig, course: Course, stop: Stop) -> None:
        self.config, self.course, self.stop = config, course, stop
        self.shape = (0, 0)
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self._changes = {phase.first for phase in config.phases}  # what is learned from there on may cost more
        self._sum, self._norm = 0.0, None
        self._pending: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent = deque(state["recent"], maxlen=WINDOW)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.stop.listen()
        self._finite_gradients = getattr(trainer.precision_plugin, "scaler", None) is None  # a scaler expects some inf
        for optimizer in trainer.optimizers:
            _slow(optimizer, lambda: self.course.rate(trainer.global_step, self.config.rollback))

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self.shape = tuple(batch.symbol.shape)
        self._before = trainer.global_step

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients and self._finite_gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            self._norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self._sum = self._sum + outputs["loss"].detach().float()
        if trainer.global_step == self._before:
            return
        norm = torch.zeros_like(self._sum) if self._norm is None else self._norm.detach().float().to(self._sum.device)
        self._pending.append(torch.stack([self._sum, norm]))
        self._sum, self._norm = 0.0, None
        step = trainer.global_step
        if step % EVERY == 0 or trainer.is_last_batch:
            self._look(trainer)
        if self.course.rollbacks:
            module.log("train.rollbacks", float(self.course.count(step - 1)))
        if self._asked(trainer, step):
            self._look(trainer)
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    def _asked(self, trainer: pl.Trainer, step: int) -> bool:
        if trainer.world_size == 1:
            return self.stop.asked
        return step % EVERY == 0 and trainer.strategy.reduce_boolean_decision(self.stop.asked, all=False)

    def _look(self, trainer: pl.Trainer) -> None:
        if not self._pending:
            return
        last = trainer.global_step
        values = trainer.strategy.reduce(torch.stack(self._pending), reduce_op="mean").tolist()
        first, self._pending = last - len(values) + 1, []
        for step, (loss, norm) in enumerate(values, first):
            if step - 1 in self._changes:
                self.recent.clear()
            if not math.isfinite(loss):
                raise Diverged(step, f"the loss is {loss}")
            if not math.isfinite(norm):
                raise Diverged(step, f"the norm of the gradient is {norm}")
            usual, spike = median(self.recent) if len(self.recent) >= FEWEST else math.inf, self.config.rollback.spike
            beyond = loss > max(self.recent, default=math.inf)  # batches of a harder task were as high before
            if spike is not None and beyond and loss > spike * usual and loss > usual + JUMP:
                raise Diverged(step, f"the loss is {loss:.3g}, {loss / usual:.1f} times the median before it")
            self.recent.append(loss)


def _slow(optimizer: torch.optim.Optimizer, factor: Any) -> None:
    """Let ``optimizer`` step with its rates times ``factor()``; schedules see and set the plain ones."""
    plain: list[Any] = []

    def lower(*_: Any) -> None:
        plain[:] = [group["lr"] for group in optimizer.param_groups]
        by = factor()
        if by != 1.0:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * by

    def restore(*_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, plain, strict=True):
            group["lr"] = rate

    optimizer = getattr(optimizer, "optimizer", optimizer)  # deepspeed's has the real one inside
    optimizer.register_step_pre_hook(lower)
    optimizer.register_step_post_hook(restore)
