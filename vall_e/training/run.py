"""Train a voice: data in, a self-contained voice folder out, resumable at any moment.

A "Lightning epoch" here is the stretch of steps between two checkpoints. Batches, dropout and corruption are functions
of (seed, step) alone, so a run that was killed goes on from its last checkpoint and ends as if nothing had happened.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vall_e.codecs.base import Codec, load_codec
from vall_e.config import Params, TrainConfig
from vall_e.corpus.work import WorkFolder, key_of
from vall_e.data.batches import Batches
from vall_e.data.corpus import CodesCorpus
from vall_e.data.samples import SampleMaker
from vall_e.models.checkpoint import VoiceConfig, save_model
from vall_e.models.packing import Layout, Packed, pack
from vall_e.models.start import sources, start
from vall_e.models.vall_e import VallE
from vall_e.tasks import TASKS
from vall_e.text.tokenizer import WORD_GAP, Tokenizer
from vall_e.training.module import VallEModule

Log = Callable[[int, dict[str, float]], None]
VALIDATION_BATCHES = 4
LOG_EVERY = 10  # steps
LENGTHS = 16  # batches are as long as a multiple of this: few shapes, see vall_e.data.batches


class _Steps(Dataset):
    """Packed batches of the steps ``first`` to ``last``."""

    def __init__(self, batches: Batches, layout: Layout, first: int, last: int) -> None:
        self.batches, self.layout, self.first, self.last = batches, layout, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Packed:
        if index >= len(self):
            raise IndexError(index)
        return pack(self.batches.batch(self.first + index), self.layout, LENGTHS)


class Data(pl.LightningDataModule):
    """Training batches of the current stretch, and a fixed set of validation batches."""

    def __init__(self, train: Batches, val: Batches | None, layout: Layout, config: TrainConfig) -> None:
        super().__init__()
        self.train_batches, self.val_batches, self.layout, self.config = train, val, layout, config

    def train_dataloader(self) -> DataLoader:
        stretch, accumulate = self.config.checkpoint_every, self.config.accumulate
        first = self.trainer.current_epoch * stretch
        last = min(first + stretch, self.config.max_steps)
        return DataLoader(
            _Steps(self.train_batches, self.layout, first * accumulate, last * accumulate), batch_size=None
        )

    def val_dataloader(self) -> DataLoader | list:
        if self.val_batches is None:
            return []
        return DataLoader(_Steps(self.val_batches, self.layout, 0, VALIDATION_BATCHES), batch_size=None)


class Average(WeightAveraging):
    """Moving average of the weights whose memory grows with the steps, up to ``decay``."""

    def __init__(self, decay: float) -> None:
        def update(averages: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
            keep = min(decay, (1 + float(count)) / (10 + float(count)))
            torch._foreach_lerp_(list(averages), list(current), 1 - keep)

        super().__init__(multi_avg_fn=update)


class Curves(Callback):
    """Progress bar, learning curves as CSV (step, split, name, value), and the log of whoever asked for it.

    Args:
        path: of the CSV in the work folder; after a resume it goes on behind the checkpoint's step.
        total: steps of the whole run.
        log: called with (step, figures).
    """

    def __init__(self, path: Path, total: int, log: Log | None) -> None:
        self.path, self.total, self.report = path, total, log  # Lightning puts its own ``log`` on callbacks
        self.seconds = 0.0
        self.last: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds + time.perf_counter() - self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._forget(trainer.global_step)
        self.bar = tqdm(total=self.total, initial=trainer.global_step, unit="step", desc="train", mininterval=1)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self.bar.n:
            return
        self.bar.update(step - self.bar.n)
        if step % LOG_EVERY == 0 or step == self.total:
            figures = self._figures(trainer, "train.") | {"train.lr": trainer.optimizers[0].param_groups[0]["lr"]}
            figures["train.steps_per_second"] = self.bar.format_dict["rate"] or 0.0
            self._write(step, figures)
            self.bar.set_postfix(loss=f"{figures.get('train.loss', float('nan')):.3f}", refresh=False)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._write(trainer.global_step, self._figures(trainer, "val."))

    def on_train_end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.started
        self.bar.close()

    def on_exception(self, *_: Any) -> None:
        if hasattr(self, "bar"):
            self.bar.close()

    @staticmethod
    def _figures(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
        return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}

    def _write(self, step: int, figures: dict[str, float]) -> None:
        self.last |= figures
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((step, *name.split(".", 1), f"{value:.6g}") for name, value in figures.items())
        if self.report is not None:
            self.report(step, figures)

    def _forget(self, step: int) -> None:
        """Drop rows behind ``step``: they were written after the checkpoint that training goes on from."""
        rows = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in list(csv.reader(file))[1:] if len(row) == 4 and int(row[0]) <= step]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("step", "split", "name", "value"), *rows])


def train(
    params: Params, root: Path, out: Path, curves: Path, work_root: Path = Path(".work"), log: Log | None = None
) -> dict[str, Any]:
    """Train on what the stages before left under ``root`` and write the voice into ``out``.

    Args:
        params: all parameters.
        root: the project's folder.
        out: of the voice; appears whole or not at all.
        curves: CSV of the learning curves.
        work_root: where checkpoints live while it trains.
        log: called with (step, figures) now and then.

    Returns:
        flat figures: steps, parameters, hours, seconds_training, last losses and accuracies.

    Raises:
        FileNotFoundError: a stage before has not run.
        ValueError: nothing to train on, or settings or weights to start from that do not fit.
    """
    tokenizer = Tokenizer.load(root / "data/phonemize/tokenizer.json")
    codec_folder = root / "models/codec"
    codec = load_codec(params.codec, codec_folder)
    data, corpus = load_data(params, root, tokenizer, codec)
    torch.manual_seed(params.train.seed)
    plain = params.model.model_copy(update={"lora": None})
    model = VallE(plain, codec.levels, codec.codes, len(tokenizer), residual=codec.residual)
    if params.model.codebook_init:
        model.start_from_codebooks(codec.codebooks(), params.train.seed)
    start(model, params, tokenizer, root, out)
    if params.model.lora is not None:
        model.adapt(params.model.lora)
    recorder, work = _fit(params, model, data, root, work_root, log)
    config = _describe(params, corpus, codec, len(tokenizer))
    _publish(out, model, config, tokenizer, codec_folder)
    curves.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(recorder.path, curves)
    shutil.rmtree(work.path)
    last = {name: round(value, 4) for name, value in recorder.last.items()}
    return {
        "steps": params.train.max_steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_utterances": len(corpus.utterances),
        "train_hours": round(corpus.hours, 4),
        "seconds_training": round(recorder.seconds, 1),
        **last,
    }


def load_data(params: Params, root: Path, tokenizer: Tokenizer, codec: Codec) -> tuple[Data, CodesCorpus]:
    """What a training reads: batches of the train and val splits, and the corpus of the first."""
    space = tokenizer.encode([WORD_GAP])[0]
    similar = root / "data/similar/similar.parquet"
    mixtures = {kind for task in params.model.all_tasks if (kind := TASKS[task].mixture) is not None}

    def load(split: str, augment: bool) -> tuple[CodesCorpus, Batches | None]:
        corpus = CodesCorpus.load(root / "data/encode", tokenizer, split, similar, mixtures)
        if not corpus.utterances:
            return corpus, None
        ingest = params.ingest
        maker = SampleMaker(
            corpus, params.train, params.model, codec.codes, space, ingest.seed, ingest.test_fraction, augment=augment
        )
        return corpus, Batches(maker, params.train.batch_frames, params.train.seed)

    corpus, batches = load("train", True)
    if batches is None:
        raise ValueError("no training utterances: look into the rejects.parquet of the stages before")
    _, val = load("val", False)
    layout = Layout.of(params.model, codec.levels, codec.codes, len(tokenizer), residual=codec.residual)
    return Data(batches, val, layout, params.train), corpus


def _fit(
    params: Params, model: VallE, data: Data, root: Path, work_root: Path, log: Log | None
) -> tuple[Curves, WorkFolder]:
    config = params.train
    if config.threads:
        torch.set_num_threads(config.threads)
    package = Path(__file__).parent.parent
    inputs = [root / "data/encode", root / "data/similar", root / "data/phonemize", root / "models/codec"]
    code = [package / name for name in ("models", "nn", "backbones", "data", "training")]
    facts = {
        "model": params.model.model_dump(mode="json"),
        "train": config.model_dump(mode="json", exclude={"threads"}),
    }
    work = WorkFolder("train", key_of(*inputs, *sources(params, root), params=facts, code=code), work_root)
    curves = Curves(work.path / "train.csv", config.max_steps, log)
    stretches = -(-config.max_steps // config.checkpoint_every)
    checkpoint = ModelCheckpoint(
        work.path,
        filename="last",
        save_top_k=1,
        every_n_epochs=1,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory.*")
        trainer = pl.Trainer(
            accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[config.device], devices=1,
            precision=config.precision, max_epochs=stretches, accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.grad_clip, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0,
            callbacks=[Average(config.ema_decay), curves, checkpoint], logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=work.path,
        )  # fmt: skip
        last = work.path / "last.ckpt"
        # Our own checkpoint, in a folder keyed by our own inputs: pickled optimiser state is welcome here only.
        trainer.fit(VallEModule(model, config), data, ckpt_path=last if last.is_file() else None, weights_only=False)
    if trainer.global_step < config.max_steps:
        raise KeyboardInterrupt(f"stopped at step {trainer.global_step} of {config.max_steps}: run again to go on")
    return curves, work


def _describe(params: Params, corpus: CodesCorpus, codec: Codec, phones: int) -> VoiceConfig:
    spoken = sum(len(u.phones) for u in corpus.utterances)
    a_phone = sum(u.codes.shape[1] for u in corpus.utterances) / corpus.frame_rate / max(1, spoken)
    started = {"backbone_from": params.model.init_from, "voice_from": params.train.init_from}
    lineage = {"profile": params.profile, "steps": params.train.max_steps, "train_hours": round(corpus.hours, 4)}
    return VoiceConfig(
        model=params.model.model_copy(update={"init_from": None}),
        levels=codec.levels, codes=codec.codes, residual=codec.residual, phones=phones, codec=params.codec,
        encode=params.encode.model_copy(update={"mixtures": None}), sampling=params.sampling,
        language=params.phonemize.language, with_stress=params.phonemize.with_stress,
        words_apart=params.phonemize.words_apart,
        seconds_per_phone=a_phone, prompt_seconds=params.train.prompt_seconds[1],
        response_phones=_longest_text(params.train, corpus, a_phone),
        lineage=lineage | {name: path for name, path in started.items() if path is not None},
    )  # fmt: skip


def _longest_text(config: TrainConfig, corpus: CodesCorpus, a_phone: float) -> int:
    """Phones, gaps between words included, of a long text of training, whose response was not too long to be used.

    Args:
        a_phone: seconds of a phone.
    """
    longest = max(len(u.phones) for u in corpus.utterances)
    if config.join is not None:
        longest = config.join.max_clips * (longest + 1) - 1
    seconds = min(config.max_response_seconds, (config.join and config.join.max_seconds) or config.max_response_seconds)
    return max(1, min(longest, round(seconds / a_phone)))


def _publish(out: Path, model: VallE, config: VoiceConfig, tokenizer: Tokenizer, codec_folder: Path) -> None:
    """Write the voice beside its place and rename it."""
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    save_model(fresh, model, config)
    tokenizer.save(fresh / "tokenizer.json")
    shutil.copytree(codec_folder, fresh / "codec")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(fresh, out)
