"""The moving average of the weights: what a run saves."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging

from vall_e.training.optimizers import averaged


class Average(WeightAveraging):
    """Moving average of the weights whose memory grows with the steps, up to ``decay``."""

    def __init__(self, decay: float) -> None:
        def update(averages: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
            keep = min(decay, (1 + float(count)) / (10 + float(count)))
            torch._foreach_lerp_(list(averages), list(current), 1 - keep)

        super().__init__(multi_avg_fn=update)

    @property
    def module(self) -> pl.LightningModule:
        """The module with the averaged weights, apart from the one that is trained."""
        return self._average_model.module

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        """As of ``WeightAveraging``; with schedule-free it takes the optimizer's own average."""
        if trainer.global_step > self._latest_update_step:
            with averaged(trainer.optimizers[0]):
                super().on_train_batch_end(trainer, pl_module, *args)

    def take_over(self, module: pl.LightningModule) -> None:
        """Give ``module`` the averages: also of a run that was killed between its last checkpoint and its end."""
        self._copy_average_to_current(module)
