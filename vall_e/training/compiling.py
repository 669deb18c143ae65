"""Blocks of a backbone, compiled for training where that pays."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch

from vall_e.backbones.base import Backbone
from vall_e.config import COMPILED
from vall_e.family import ModelConfig
from vall_e.regimen import TrainConfig

# Operations of a long training, whose sixth part takes twice as long as compiling does: ten minutes on two cores of a
# CPU, where compiling takes half a minute.
LONG = {"cpu": 5e13, "cuda": 1e16}


@dataclass(frozen=True)
class Verdict:
    """Whether the blocks get compiled, and why."""

    compiles: bool
    why: str


def device_of(train: TrainConfig) -> str:
    """What ``train.device`` comes to: cuda or cpu."""
    return "cuda" if train.device != "cpu" and torch.cuda.is_available() else "cpu"


def operations(train: TrainConfig, parameters: int) -> float:
    """Of the whole training, of a model of so many parameters: about six for each of them and position."""
    return 6 * parameters * train.batch_frames * train.accumulate * train.max_steps


def is_long(train: TrainConfig, parameters: int) -> bool:
    """Half a minute before it is well spent."""
    return operations(train, parameters) >= LONG[device_of(train)]


def verdict(train: TrainConfig, model: ModelConfig, parameters: int) -> Verdict:
    """What ``train.compile`` comes to. By auto, settings and this machine's compiler alone decide, so a run that goes
    on after a kill computes as it did before.

    Args:
        parameters: of the model.
    """
    if train.compile != "auto":
        return Verdict(train.compile, "train.compile says so")
    device, work = device_of(train), operations(train, parameters)
    unlike = {
        f"backbone {model.backbone}": model.backbone not in COMPILED,
        "model.lora": model.lora is not None,
        "train.layerskip": train.layerskip is not None,
        f"strategy {train.strategy}": train.shares_weights,
    }
    said = f"{work:.1e} operations"
    if not is_long(train, parameters):
        return Verdict(False, f"{said}: compiling pays from {LONG[device]:.0e} on")
    for what, there in unlike.items():
        if there:
            return Verdict(False, f"{what}: not shown to train alike when compiled")
    if (hindrance := hindrance_to(device)) is not None:
        return Verdict(False, f"it would pay ({said}), but {hindrance}")
    return Verdict(True, f"{said} are worth it")


@cache
def hindrance_to(device: str) -> str | None:
    """What keeps ``torch.compile`` from working on ``device``, such as no C++ compiler; None if it works."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it tells of CUDA where no GPU is
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # of many classes, by what is missing: a compiler, Python's headers, Triton
        return " ".join(str(error).split("\n\n")[0].split())
    return None


def compile_blocks(backbone: Backbone, backend: str = "inductor") -> None:
    """Compile what repeats, in place, for any number of rows and positions; the names of the weights stay.

    A copy of the backbone, such as its moving average, is not compiled.

    Args:
        backend: of ``torch.compile``.
    """
    for block in backbone.blocks:
        block.compile(dynamic=True, backend=backend)
