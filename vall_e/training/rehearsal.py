"""Some steps on one real batch before a training: is it learned, how long is a step, how much memory does it take.

The model is a fresh one and is thrown away; torch's generators are as before. So a training is the same with it and
without.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vall_e.codecs.base import load_codec
from vall_e.config import Params
from vall_e.memory import peak_mb
from vall_e.models.packing import Packed, pack
from vall_e.models.vall_e import VallE
from vall_e.regimen import Phase, TrainConfig
from vall_e.text.tokenizer import Tokenizer
from vall_e.training.compiling import device_of, verdict
from vall_e.training.feed import LENGTHS, Data
from vall_e.training.memory import is_memory_error
from vall_e.training.module import factors_of
from vall_e.training.optimizers import build_optimizer
from vall_e.training.preflight import Check
from vall_e.training.run import build_model, load_data

STEPS = 20  # where train.preflight.overfit_steps is auto, or 0
_ENOUGH = 5  # steps below which a loss says nothing


def rehearse(params: Params, root: Path, work_root: Path, out: Path) -> tuple[list[Check], dict[str, Any]]:
    """Overfit the largest of the last batches, at the full rates, and time it.

    Args:
        root, work_root, out: as of ``vall_e.training.run.train``.

    Returns:
        the checks, and figures: steps, first_loss, last_loss, seconds_per_step (of the run: all batches of a step),
        hours, peak_mb; none where the batch does not fit into memory.

    Raises:
        FileNotFoundError: a stage before has not run.
        ValueError: as of ``train``.
    """
    config, device = params.train, torch.device(device_of(params.train))
    if config.threads:
        torch.set_num_threads(config.threads)
    tokenizer = Tokenizer.load(root / "data/phonemize/tokenizer.json")
    with torch.random.fork_rng():
        codec = load_codec(params.codec, root / "models/codec")
        data, _ = load_data(params, root, tokenizer, codec, work_root)
        phase, batch = _largest(data, config)
        model = build_model(params, codec, tokenizer, root, out)
        rows, positions = batch.symbol.shape
        try:
            losses, seconds = _steps(model.to(device).train(), batch.to(device), params, phase)
        except Exception as error:
            if not is_memory_error(error):
                raise
            told = f"{rows} x {positions} positions do not fit: training takes batches in pieces, which is slower"
            return [Check("peak memory", "mind", f"{told}; lower train.batch_frames and raise train.accumulate")], {}
    pace = median(seconds[1:] or seconds) * config.accumulate
    figures = {
        "steps": len(seconds), "first_loss": losses[0], "last_loss": losses[-1], "seconds_per_step": pace,
        "hours": pace * config.max_steps / 3600, "peak_mb": peak_mb(device),
    }  # fmt: skip
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # those of the training are its own
    time_said = f"{pace:.2f} s a step on {device.type}: {config.max_steps:,} steps take {_span(figures['hours'])}"
    if verdict(config, params.model, sum(p.numel() for p in model.parameters())).compiles:
        time_said += " with plain blocks, less with compiled ones"
    memory = f"{figures['peak_mb']:,.0f} MB at the peak of steps on {rows} x {positions} positions"
    return [
        _learned(losses, config),
        Check("time", "ok", f"{time_said}, validation not counted"),
        Check("peak memory", "ok", memory),
    ], figures


def _largest(data: Data, config: TrainConfig) -> tuple[Phase, Packed]:
    """The largest batch of the last pool of any phase: by then strings are as long as a curriculum makes them."""
    batches, ends = data.train_batches, [*(phase.first for phase in config.phases[1:]), config.max_steps]
    found: list[tuple[Phase, Packed]] = []
    for phase, end in zip(config.phases, ends, strict=True):
        first, last = phase.first * config.accumulate, end * config.accumulate
        for step in range(max(first, (last - 1) // batches.pool * batches.pool), last):
            found.append((phase, pack(batches.batch(step), data.layout, LENGTHS)))
    return max(found, key=lambda each: each[1].symbol.numel())


def _steps(model: VallE, batch: Packed, params: Params, phase: Phase) -> tuple[list[float], list[float]]:
    """The loss before each step and after the last, and the seconds of each step."""
    config = params.train
    optimizer = build_optimizer(model, config)
    factors, steps = factors_of(phase.train, model), config.preflight.overfit_steps
    losses, seconds = [], []
    until = time.perf_counter() + config.preflight.seconds
    while len(seconds) < (STEPS if steps in ("auto", 0) else steps) and time.perf_counter() < until:
        began = time.perf_counter()
        loss = _loss(model, batch, params, factors)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, config.grad_clip)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    with torch.no_grad():
        losses.append(_loss(model, batch, params, factors).item())
    return losses, seconds


def _loss(model: VallE, batch: Packed, params: Params, factors: Mapping[str, float]) -> Tensor:
    """Scalar; dropout is the same in each step."""
    torch.manual_seed(params.train.seed)
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(params.train.precision)
    with torch.autocast(batch.symbol.device.type, dtype, enabled=dtype is not None):
        return model.loss(batch, alignment_weight=params.train.alignment_weight, factors=factors)[0]


def _learned(losses: list[float], config: TrainConfig) -> Check:
    first, last, steps, wanted = losses[0], losses[-1], len(losses) - 1, config.preflight.min_fall
    fall = 1 - last / first
    said = f"the loss of one batch went from {first:.3f} to {last:.3f} in {steps} steps, by {fall:.0%}"
    if fall >= wanted:
        return Check("one batch", "ok", said)
    if steps < _ENOUGH:
        return Check("one batch", "mind", f"{said}: too few steps to tell, raise train.preflight.seconds")
    if config.init_from is not None:
        return Check("one batch", "mind", f"{said}: little, as may be of a voice that has learned before")
    remedy = (
        "raise the rates or train.preflight.overfit_steps if they are meant to be small; else look at the codes "
        "(report of the codec) and at train.lr, which may be too high"
    )
    return Check("one batch", "fails", f"{said}, and {wanted:.0%} are wanted (train.preflight.min_fall): {remedy}")


def _span(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{hours * 60:.1f} min"
