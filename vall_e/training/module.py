"""The model as Lightning sees it: loss, optimiser, schedule."""

from __future__ import annotations

import sys
from bisect import bisect_right

import lightning.pytorch as pl
import torch
from torch import Tensor

from vall_e.config import TrainConfig
from vall_e.models.packing import Packed
from vall_e.models.vall_e import VallE
from vall_e.nn.layerskip import drop_layers, exit_weights
from vall_e.training.course import no_room
from vall_e.training.distill import Teacher
from vall_e.training.memory import Piece, figures_of, is_memory_error
from vall_e.training.optimizers import build_optimizer, rate_factor
from vall_e.training.ranks import seed_step


def factors_of(train: TrainConfig, model: VallE) -> dict[str, float]:
    """Weight of each of the model's losses, by name (``TrainConfig.loss_factors``)."""
    return train.loss_factors(model.config, model.layout.levels, residual=model.layout.residual)


class VallEModule(pl.LightningModule):
    """Trains a ``VallE`` on packed batches. Every step draws its dropout from (seed, step): resuming is exact.

    Args:
        teacher: to learn from beside the recordings.

    Attributes:
        pieces: that a batch of validation comes in.
    """

    def __init__(self, model: VallE, train: TrainConfig, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.model, self.config, self.teacher, self.pieces = model, train, teacher, 1
        self._firsts = [phase.first for phase in train.phases]
        self._factors = [factors_of(phase.train, model) for phase in train.phases]
        if train.layerskip is not None:
            drop_layers(model.backbone.blocks, train.layerskip.max_dropout)

    @property
    def factors(self) -> dict[str, float]:
        """Weight of each loss at this step."""
        return self._factors[bisect_right(self._firsts, self.global_step) - 1]

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.teacher.model.to(self.device)

    def training_step(self, batch: Packed, _: int) -> Tensor:
        config, trainer = self.config, self.trainer
        seed_step(config.seed, self.global_step, trainer.global_rank, trainer.world_size)
        loss, figures = self.model.loss(
            batch,
            config.label_smoothing,
            config.alignment_weight,
            self.factors,
            self._exit_weights(),
            guide=None if self.teacher is None else self.teacher(batch),
            shares=batch.shares if isinstance(batch, Piece) else None,
            every_weight=config.shares_weights,
        )
        self.log_dict({f"train.{k}": v for k, v in figures.items()})  # rank 0's own: others may have other tasks
        self.log("train.loss", loss.detach(), sync_dist=trainer.world_size > 1)
        return loss

    def _exit_weights(self) -> list[float] | None:
        skip, layers = self.config.layerskip, self.model.config.layers
        return None if skip is None else exit_weights(layers, skip.exit_weight, skip.rotate, self.global_step)

    def validation_step(self, batch: Packed, _: int) -> None:
        self.log_dict(self.validated(batch), batch_size=len(batch.symbol), sync_dist=self.trainer.world_size > 1)

    def validated(self, batch: Packed) -> dict[str, Tensor]:
        """Figures of a validation batch, scalars; one that does not fit into memory is taken in pieces.

        Raises:
            CourseError: one row does not fit.
        """
        rows, positions = batch.symbol.shape
        while True:
            try:
                figures = figures_of(self.model, batch, min(self.pieces, rows))
                return {f"val.{name}": value for name, value in figures.items()}
            except Exception as error:
                if not is_memory_error(error) or self.config.strategy == "fsdp":  # whose processes gather together
                    raise
                if self.pieces >= rows:
                    raise no_room(positions) from error
            self.pieces *= 2  # out here, where nothing holds the failed one
            torch.cuda.empty_cache()
            said = f"out of memory in validation with {rows} rows of {positions} positions"
            print(f"train: {said}: its batches are taken in {self.pieces} pieces", file=sys.stderr, flush=True)

    def configure_optimizers(self) -> dict:
        optimizer = build_optimizer(self.model, self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, self.config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Packed, device: torch.device, dataloader_idx: int) -> Packed:
        return batch.to(device)
