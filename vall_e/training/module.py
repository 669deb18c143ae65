"""The model as Lightning sees it: loss, optimiser, schedule."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from pytorch_optimizer import Muon
from torch import Tensor, nn

from vall_e.config import TrainConfig
from vall_e.family import level_shares
from vall_e.models.packing import Packed
from vall_e.models.vall_e import VallE
from vall_e.nn.layerskip import drop_layers, exit_weights


def parameter_groups(model: nn.Module, train: TrainConfig) -> list[dict]:
    """Matrices of the backbone for Muon (where chosen), the rest for AdamW; no decay on vectors and tables; nothing of
    what is frozen."""
    matrices, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() == 2 and ".blocks." in name and not name.endswith("A_log"):  # Mamba's rates: a table
            matrices.append(parameter)
        elif parameter.dim() == 2 and "heads." in name:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    if train.optimizer == "adamw":
        return [
            {"params": matrices + decayed, "lr": train.lr, "weight_decay": train.weight_decay},
            {"params": plain, "lr": train.lr, "weight_decay": 0.0},
        ]
    adam = {"use_muon": False, "lr": train.lr, "betas": train.betas}
    return [
        {"params": matrices, "use_muon": True, "lr": train.muon_lr, "weight_decay": train.weight_decay},
        {"params": decayed, **adam, "weight_decay": train.weight_decay},
        {"params": plain, **adam, "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon (Jordan 2024; 2502.16982) for the matrices of the blocks with AdamW for the rest."""
    groups = parameter_groups(model, train)
    if train.optimizer == "muon":
        return Muon(groups)
    return torch.optim.AdamW(groups, betas=train.betas)


def rate_factor(step: int, train: TrainConfig) -> float:
    """Factor on the learning rates at ``step``: linear warm-up, then hold, linear or cosine decay to 2 %."""
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if train.schedule == "hold":
        return 1.0
    done = min(1.0, (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps))
    if train.schedule == "linear":
        return 1.0 - 0.98 * done
    return 0.02 + 0.98 * 0.5 * (1.0 + torch.cos(torch.tensor(done * torch.pi)).item())


class VallEModule(pl.LightningModule):
    """Trains a ``VallE`` on packed batches. Every step draws its dropout from (seed, step): resuming is exact."""

    def __init__(self, model: VallE, train: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, train
        layout = model.layout
        self.level_factors = level_shares(train.level_factors, layout.levels, residual=layout.residual)
        if train.layerskip is not None:
            drop_layers(model.backbone.blocks, train.layerskip.max_dropout)

    def training_step(self, batch: Packed, _: int) -> Tensor:
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step)
        config = self.config
        loss, figures = self.model.loss(
            batch, config.label_smoothing, config.alignment_weight, self.level_factors, self._exit_weights()
        )
        self.log_dict({f"train.{k}": v for k, v in figures.items()} | {"train.loss": loss.detach()})
        return loss

    def _exit_weights(self) -> list[float] | None:
        skip, layers = self.config.layerskip, self.model.config.layers
        return None if skip is None else exit_weights(layers, skip.exit_weight, skip.rotate, self.global_step)

    def validation_step(self, batch: Packed, _: int) -> None:
        loss, figures = self.model.loss(batch)
        figures = {f"val.{k}": v for k, v in figures.items()} | {"val.loss": loss}
        self.log_dict(figures, batch_size=len(batch.symbol))

    def configure_optimizers(self) -> dict:
        optimizer = build_optimizer(self.model, self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, self.config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Packed, device: torch.device, dataloader_idx: int) -> Packed:
        return batch.to(device)
