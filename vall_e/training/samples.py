"""Every so many steps somebody hears and sees what the model can do by then, and training takes no notice.

Who makes the samples is handed in (``Show``): training knows nothing of speaking. They are made of the averaged
weights, which they leave as they are, between two steps, with the generators of random numbers put back behind them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from vall_e.config import TrainConfig
from vall_e.data.readings import Reading, readings
from vall_e.models.vall_e import VallE
from vall_e.training.average import Average
from vall_e.training.curves import Curves


class Show(Protocol):
    """Makes samples, and takes them to wherever they are kept."""

    def make(self, model: VallE, texts: Sequence[Reading], folder: Path) -> dict[str, float]:
        """Write into ``folder`` how ``model`` (in evaluation mode, without gradients) reads ``texts``, and give back
        figures named ``split.name``."""
        ...

    def keep(self, folder: Path) -> None:
        """``folder`` is whole now: made by this process, or by one that was stopped behind it."""
        ...


class Samples(Callback):
    """Calls ``show`` after each ``train.samples.every`` steps.

    Samples that fail are said and do not stop the training. What was made behind the checkpoint that training goes on
    from is made anew, as its curves are.

    Args:
        average: holds the weights to show.
        curves: is told the figures, and those of validation; its clock stands still meanwhile.
        folder: gets ``step-000200`` and so on, each whole.
    """

    def __init__(self, train: TrainConfig, average: Average, curves: Curves, show: Show, folder: Path) -> None:
        self.config, self.average, self.curves, self.show, self.folder = train, average, curves, show, folder

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        if trainer.global_rank != 0:
            return
        data = trainer.datamodule
        maker = (data.val_batches or data.train_batches).maker
        self.texts = readings(maker, self.config.samples.utterances, self.config.seed)
        for made in sorted(self.folder.glob("*")):
            if made.name.startswith("step-") and int(made.name[5:]) <= self._step:
                self.show.keep(made)
            else:
                shutil.rmtree(made, ignore_errors=True)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        if step % self.config.samples.every == 0 and trainer.global_rank == 0:
            began = time.perf_counter()
            with self.curves.clock.stopped(), isolate_rng():
                figures = self._make(trainer, step)
            self.curves.write(step, figures | {"samples.seconds": time.perf_counter() - began})

    def _make(self, trainer: pl.Trainer, step: int) -> dict[str, float]:
        module, place = self.average.module, self.folder / f"step-{step:06d}"
        fresh, training, figures = place.with_name(f".{place.name}.new"), module.training, {}
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        module.eval()
        try:
            with torch.no_grad():
                if step % self.config.checkpoint_every and step != self.config.max_steps:  # else it is validated anyway
                    figures = self._validated(trainer, module)
                figures |= self.show.make(module.model, self.texts, fresh)
            fresh.replace(place)
            self.show.keep(place)
        except Exception as error:  # whatever it is: hours of training are worth more than a sample
            self.curves.progress.say(f"no samples of step {step}: {type(error).__name__}: {error}")
        finally:
            module.train(training)
            shutil.rmtree(fresh, ignore_errors=True)
        return figures

    @staticmethod
    def _validated(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
        """Figures of the validation batches, means over their rows."""
        sums: dict[str, float] = {}
        rows: dict[str, int] = {}
        with trainer.precision_plugin.val_step_context():
            for batch in trainer.datamodule.val_dataloader():
                count = len(batch.lengths)
                for name, value in module.validated(batch.to(module.model.device)).items():
                    sums[name] = sums.get(name, 0.0) + count * float(value)
                    rows[name] = rows.get(name, 0) + count
        return {name: total / rows[name] for name, total in sums.items()}
