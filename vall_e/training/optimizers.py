"""What changes the weights: the optimizers, all of them kept libraries', and the rate at each step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_optimizer import Muon, ScheduleFreeAdamW
from torch import nn

from vall_e.config import TrainConfig

FLOOR = 0.02  # share of the rate that a decay ends at


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
    if train.optimizer != "muon":
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
    """The optimizer of ``train.optimizer`` over the model's trainable parameters.

    ``adamw`` (1711.05101); ``adam`` (1412.6980), whose weight decay is a part of the gradient; ``muon`` (Jordan 2024;
    2502.16982) for the matrices of the blocks with AdamW for the rest; ``schedule-free`` AdamW (2405.15682);
    ``adafactor`` (1804.04235), which keeps a row and a column of second moments in place of a matrix, and no first.
    """
    groups = parameter_groups(model, train)
    if train.optimizer == "muon":
        return Muon(groups)
    if train.optimizer == "adafactor":
        return torch.optim.Adafactor(groups)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "schedule-free": ScheduleFreeAdamW}
    return kinds[train.optimizer](groups, betas=train.betas)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the parameters are those that the optimizer would have used: the average x of schedule-free (2405.15682,
    section 2), whose training goes on from y. Behind it they are as they were, bit for bit; others change nothing."""
    if not isinstance(optimizer, ScheduleFreeAdamW):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            torch._foreach_copy_(parameters, kept)


def rate_factor(step: int, train: TrainConfig) -> float:
    """Factor on the learning rates at ``step``: linear warm-up, then the schedule, times the stage's own.

    ``hold``; ``linear`` and ``cosine`` fall to 2 % at the last step; ``step`` is multiplied by ``gamma`` after each
    ``step_every`` steps behind the warm-up; ``wsd`` holds, then falls linearly to 2 % (2404.06395, section 4.2).
    """
    stage = next((stage for stage in train.stages if step < stage.until), None)
    return _scheduled(step, train) * (1.0 if stage is None else stage.lr_factor)


def _scheduled(step: int, train: TrainConfig) -> float:
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if train.schedule == "hold":
        return 1.0
    if train.schedule == "step":
        return train.gamma ** ((step - train.warmup_steps) // train.step_every)
    first = train.warmup_steps
    if train.schedule == "wsd":
        first = max(first, round(train.max_steps * (1 - train.decay_share)))
    done = min(1.0, max(0, step - first) / max(1, train.max_steps - first))
    if train.schedule == "cosine":
        return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0 - (1.0 - FLOOR) * done
