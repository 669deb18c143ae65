"""Our training in rounds: what the train stage builds, run by Lightning, timed pool by pool.

A round is the steps of one pool of batches (``vall_e.data.batches.POOL``). Between two rounds whoever wants to may have
a turn, which does not count.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from vall_e.codecs.base import load_codec
from vall_e.config import Params
from vall_e.data.batches import POOL
from vall_e.models.vall_e import VallE
from vall_e.text.tokenizer import Tokenizer
from vall_e.training.average import Average
from vall_e.training.compiling import compile_blocks, verdict
from vall_e.training.feed import Data
from vall_e.training.module import VallEModule
from vall_e.training.run import load_data

Turn = Callable[[int], None]


def build(params: Params, root: Path, work: Path) -> tuple[VallE, Data]:
    """The model with its first weights, and batches of what the stages left under ``root``."""
    tokenizer = Tokenizer.load(root / "data/phonemize/tokenizer.json")
    codec = load_codec(params.codec, root / "models/codec")
    data, _ = load_data(params, root, tokenizer, codec, work)
    torch.manual_seed(params.train.seed)
    return VallE(params.model, codec.levels, codec.codes, len(tokenizer), residual=codec.residual), data


class Rounds(Callback):
    """Times rounds.

    Args:
        data: is asked how long training waited.
        turn: called with the number of each round when it is over.

    Attributes:
        seconds, waited: of each round.
    """

    def __init__(self, data: Data, turn: Turn | None = None) -> None:
        self.data, self.turn = data, turn
        self.seconds: list[float] = []
        self.waited: list[float] = []

    def on_train_start(self, *_: Any) -> None:
        self._begin()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % POOL:
            return
        self.seconds.append(time.perf_counter() - self._began)
        self.waited.append(self.data.waited - self._waited)
        if self.turn is not None:
            self.turn(len(self.seconds) - 1)
        self._begin()

    def _begin(self) -> None:
        self._began, self._waited = time.perf_counter(), self.data.waited


def compiles(params: Params, model: VallE) -> bool:
    """Whether the whole training would compile the blocks."""
    return verdict(params.train, params.model, sum(p.numel() for p in model.parameters())).compiles


def run(params: Params, model: VallE, data: Data, rounds: int, turn: Turn | None = None) -> Rounds:
    """So many rounds of training as the train stage trains, without checkpoints and validation."""
    config = params.train.model_copy(update={"max_steps": rounds * POOL, "checkpoint_every": rounds * POOL})
    data = Data(data.train_batches, None, data.layout, config)
    told = Rounds(data, turn)
    module = VallEModule(model, config)
    if compiles(params, model):
        compile_blocks(model.backbone)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(val_dataloader|validation|_Stretch|sequence of length).*")
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, precision=config.precision, max_epochs=1,
            gradient_clip_val=config.grad_clip, num_sanity_val_steps=0, limit_val_batches=0,
            callbacks=[Average(config.ema_decay), told], logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(module, data)
    return told
