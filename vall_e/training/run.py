"""Train a voice: data in, a self-contained voice folder out, resumable at any moment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vall_e.codecs.base import Codec, load_codec
from vall_e.config import Params, TrainConfig
from vall_e.data.batches import Batches
from vall_e.data.corpus import CodesCorpus
from vall_e.data.curriculum import Curriculum, batches_of
from vall_e.data.samples import SampleMaker
from vall_e.family import ModelConfig
from vall_e.models.checkpoint import VoiceConfig, write_voice
from vall_e.models.freeze import freeze
from vall_e.models.packing import Layout
from vall_e.models.start import start
from vall_e.models.vall_e import VallE
from vall_e.tasks import TASKS
from vall_e.text.tokenizer import WORD_GAP, Tokenizer
from vall_e.training.curves import Log
from vall_e.training.distill import load_teacher
from vall_e.training.feed import VALIDATION_BATCHES, Data
from vall_e.training.fit import fit
from vall_e.training.ranks import rank_of
from vall_e.training.samples import Show
from vall_e.training.unfinished import alone


def train(
    params: Params,
    root: Path,
    out: Path,
    curves: Path,
    work_root: Path = Path(".work"),
    log: Log | None = None,
    live: Path | None = None,
    show: Show | None = None,
) -> dict[str, Any]:
    """Train on what the stages before left under ``root`` and write the voice into ``out``.

    Args:
        params: all parameters.
        root: the project's folder.
        out: of the voice; appears whole or not at all.
        curves: CSV of the learning curves.
        work_root: where checkpoints live while it trains.
        log: called with (step, figures) now and then.
        live: folder for what can be looked at meanwhile: the curves so far (train.csv) and samples.
        show: makes samples, where ``train.samples`` asks for some.

    Returns:
        flat figures: steps, parameters, hours, seconds_training, loader_wait_share (of these seconds, in which training
        waited for batches), rollbacks, pieces (that batches were taken in, for want of memory), last losses and
        accuracies. Of several processes only rank 0 writes and has figures.

    Raises:
        FileNotFoundError: a stage before has not run.
        ValueError: nothing to train on, or settings or weights to start from that do not fit; or training that cannot
            go on (``CourseError``); or another process trains there (``Busy``).
        CheckpointError: no room for a checkpoint.
    """
    with alone(work_root):
        return _train(params, root, out, curves, work_root, log, live, show)


def _train(
    params: Params,
    root: Path,
    out: Path,
    curves: Path,
    work_root: Path,
    log: Log | None,
    live: Path | None,
    show: Show | None,
) -> dict[str, Any]:
    """As ``train``, which sees to it that no other process does the same."""
    tokenizer = Tokenizer.load(root / "data/phonemize/tokenizer.json")
    codec_folder = root / "models/codec"
    codec = load_codec(params.codec, codec_folder)
    data, corpus = load_data(params, root, tokenizer, codec, work_root)
    model = build_model(params, codec, tokenizer, root, out)
    distill, teacher = params.train.distill, None
    if distill is not None:
        teacher = load_teacher(distill, model, tokenizer, root, codec_folder, out)
    fitted = fit(params, model, data, root, work_root, log, teacher, live, show)
    if rank_of() > 0:
        return {}
    recorder, work = fitted.curves, fitted.work
    config = _describe(params, corpus, codec, len(tokenizer))
    _publish(out, fitted.weights, config, tokenizer, codec_folder)
    curves.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(recorder.path, curves)
    shutil.rmtree(work.path)
    last = {name: round(value, 4) for name, value in recorder.last.items()}
    return {
        "steps": params.train.max_steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_utterances": len(corpus.utterances),
        "train_hours": round(corpus.hours, 4),
        "train_left_out": data.train_batches.left_out,
        "seconds_training": round(recorder.seconds, 1),
        "loader_wait_share": round(data.waited / max(recorder.seconds, 1e-9), 4),
        "rollbacks": len(fitted.course.rollbacks),
        "pieces": fitted.course.pieces,
        "compiled": int(fitted.compiled),
        **last,
    }


def build_model(params: Params, codec: Codec, tokenizer: Tokenizer, root: Path, out: Path) -> VallE:
    """The model as training begins with it: what it starts from loaded, what stays as it is frozen.

    Raises:
        ValueError: settings or weights to start from that do not fit.
    """
    torch.manual_seed(params.train.seed)
    plain = params.model.model_copy(update={"lora": None})
    model = VallE(plain, codec.levels, codec.codes, len(tokenizer), residual=codec.residual)
    if params.model.codebook_init:
        model.start_from_codebooks(codec.codebooks(), params.train.seed)
    new = start(model, params, tokenizer, root, out)
    if params.model.lora is not None:
        model.adapt(params.model.lora)
    freeze(model, params.train.freeze, params.train.thaw)
    if new and not model.embeddings.symbol.weight.requires_grad:
        raise ValueError(
            f"{new} phones of this corpus are new to {params.train.init_from}, and their table is frozen, so that they "
            "would stay alike: add embeddings.symbol to train.thaw"
        )
    return model


def load_data(
    params: Params, root: Path, tokenizer: Tokenizer, codec: Codec, work_root: Path
) -> tuple[Data, CodesCorpus]:
    """What a training reads: batches of the train and val splits, and the corpus of the first."""
    space = tokenizer.encode([WORD_GAP])[0]
    similar = root / "data/similar/similar.parquet"
    mixtures = {kind for task in params.model.all_tasks if (kind := TASKS[task].mixture) is not None}

    def load(split: str, augment: bool) -> tuple[CodesCorpus, Batches | Curriculum | None]:
        corpus = CodesCorpus.load(root / "data/encode", tokenizer, split, work_root, similar, mixtures)
        if not len(corpus.utterances):
            return corpus, None
        seed, fraction = params.split.seed, params.split.test_fraction

        def maker(train: TrainConfig, model: ModelConfig) -> SampleMaker:
            return SampleMaker(corpus, train, model, codec.codes, space, seed, fraction, augment=augment)

        if augment:
            return corpus, batches_of(params.train, params.model, maker)
        train = params.train
        return corpus, Batches(maker(train, params.model), train.batch_frames, train.seed, VALIDATION_BATCHES)

    corpus, batches = load("train", True)
    if batches is None:
        raise ValueError("no training utterances: look into the rejects.parquet of the stages before")
    _, val = load("val", False)
    layout = Layout.of(params.model, codec.levels, codec.codes, len(tokenizer), residual=codec.residual)
    return Data(batches, val, layout, params.train), corpus


def _describe(params: Params, corpus: CodesCorpus, codec: Codec, phones: int) -> VoiceConfig:
    a_phone = corpus.hours * 3600 / max(1, len(corpus.utterances.phones.values))
    started = {"backbone_from": params.model.init_from, "voice_from": params.train.init_from}
    started["taught_by"] = params.train.distill and params.train.distill.voice
    lineage = {"profile": params.profile, "steps": params.train.max_steps, "train_hours": round(corpus.hours, 4)}
    return VoiceConfig(
        model=params.model.model_copy(update={"init_from": None}),
        levels=codec.levels, codes=codec.codes, residual=codec.residual, phones=phones,
        codec=params.codec.model_copy(update={"weights": None}),
        encode=params.encode.model_copy(update={"mixtures": None}), sampling=params.sampling,
        language=params.phonemize.language, with_stress=params.phonemize.with_stress,
        words_apart=params.phonemize.words_apart,
        seconds_per_phone=a_phone, prompt_seconds=params.train.prompt_seconds[1],
        response_phones=_longest_text(params.train.phases[-1].train, corpus, a_phone),
        lineage=lineage | {name: path for name, path in started.items() if path is not None},
    )  # fmt: skip


def _longest_text(config: TrainConfig, corpus: CodesCorpus, a_phone: float) -> int:
    """Phones, gaps between words included, of a long text of training, whose response was not too long to be used.

    Args:
        a_phone: seconds of a phone.
    """
    longest = int(corpus.utterances.phones.lengths.max())
    if config.join is not None:
        longest = config.join.max_clips * (longest + 1) - 1
    seconds = min(config.max_response_seconds, (config.join and config.join.max_seconds) or config.max_response_seconds)
    return max(1, min(longest, round(seconds / a_phone)))


def _publish(
    out: Path, weights: dict[str, Tensor], config: VoiceConfig, tokenizer: Tokenizer, codec_folder: Path
) -> None:
    """Write the voice beside its place and rename it."""
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    write_voice(fresh, weights, config)
    tokenizer.save(fresh / "tokenizer.json")
    shutil.copytree(codec_folder, fresh / "codec")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(fresh, out)
