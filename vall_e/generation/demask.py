"""Iterative demasking: level 0 (NAR-len) or all levels of every frame (V2) from masks to codes.

Each step predicts what is masked, keeps the surest predictions and masks the rest for the next one, fewer each time
on a cosine schedule (MaskGIT, 2202.04200, section 3.2; MaskGCT, 2409.00750, section 3.2.1).

Dimensions: B rows, l levels shown by a masked row, T frames, n codes per level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vall_e.decoding import DemaskConfig
from vall_e.family import by_order
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import sample
from vall_e.sampling.draw import exponential
from vall_e.sampling.guidance import guide


def masked_after(step: int, steps: int, positions: int) -> int:
    """How many of ``positions`` are still masked after ``step`` (from 1) of ``steps``: the cosine schedule."""
    return 0 if step >= steps else math.floor(positions * math.cos(math.pi / 2 * step / steps))


@torch.inference_mode()
def demask(
    model: VallE,
    prompts: Sequence[Sample],
    frames: Sequence[int],
    config: DemaskConfig,
    seeds: Sequence[int],
    given: Sequence[np.ndarray | None] | None = None,
) -> list[np.ndarray]:
    """Codes of responses whose lengths are known.

    Args:
        prompts: samples whose inputs to use.
        frames: T of each.
        config: steps, temperature, guidance and how they fall.
        seeds: one per prompt; a row's draws do not depend on its batch.
        given: codes int64 [l, T] to start from, n where they are masked; what is given stays. None: all masked.

    Returns:
        int64 [l, T] of each.

    Raises:
        ValueError: ``given`` of another shape, or an order of levels for a codec that has none.
    """
    layout = model.layout
    shown, n = layout.shown, layout.codes
    rows = []
    for index, (prompt, length, seed) in enumerate(zip(prompts, frames, seeds, strict=True)):
        start = None if given is None else given[index]
        if start is None:
            start = np.full((shown, length), n, dtype=np.int64)
        if start.shape != (shown, length) or start.min(initial=0) < 0 or start.max(initial=0) > n:
            raise ValueError(f"given codes are int64 [{shown}, {length}] in 0..{n}, not {start.shape}")
        rows.append(_Row(prompt, torch.from_numpy(start.copy()), n, seed))
    order = config.order
    if shown > 1:
        order = by_order("sampling.demask.order", order, layout.residual, ordered="level", alike="free")
    if order == "level":
        stages = [(range(level, level + 1), config.later_steps if level else config.steps) for level in range(shown)]
    else:
        stages = [(range(shown), config.steps)]
    for levels, steps in stages:
        for step in range(1, steps + 1):
            active = [row for row in rows if bool(row.open[levels.start : levels.stop].any())]
            if not active:
                break
            progress = (step - 1) / max(1, steps - 1)
            log_p = _predict(model, active, config.guidance * (1 - progress * config.anneal_guidance))
            temperature = config.temperature * (1 - progress * config.anneal_temperature)
            for row, p in zip(active, log_p, strict=True):
                row.fill(p, step, steps, config, temperature, levels)
    return [row.codes.numpy() for row in rows]


class _Row:
    """A response while it appears. ``open``: bool [l, T], positions that were masked at the start."""

    def __init__(self, prompt: Sample, codes: Tensor, n: int, seed: int) -> None:
        self.prompt, self.codes, self.n = prompt, codes, n
        self.open = codes == n
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + 11) % 2**63)

    def sample(self) -> Sample:
        """The row as the model reads it."""
        shown, frames = self.codes.shape
        seen = np.full((self.prompt.prompt.shape[0], frames), self.n, dtype=np.int64)
        seen[:shown] = self.codes.numpy()
        return replace(
            self.prompt, response=np.zeros_like(seen), corrupted=seen, mode="mask", level=0, spoken=None
        )  # fmt: skip

    def fill(
        self, log_p: Tensor, step: int, steps: int, config: DemaskConfig, temperature: float, levels: range
    ) -> None:
        """Predict what is masked on ``levels`` from log-probabilities [l, T, n]; mask again what is least sure."""
        masked = self.codes == self.n
        noise = exponential(log_p.shape, self.generator)
        shape = log_p.shape[:2]
        drawn = sample(
            log_p.flatten(0, 1), noise.flatten(0, 1), temperature=temperature, top_k=config.top_k, top_p=config.top_p
        ).view(shape)  # fmt: skip
        codes = torch.where(masked, drawn, self.codes)
        # How sure: of the prediction itself, before filters and temperature.
        sure = log_p.gather(-1, codes.clamp(max=self.n - 1)[..., None])[..., 0]
        gumbel = -exponential(shape, self.generator).log()
        sure = sure + config.choice_temperature * (1 - step / steps) * gumbel
        if config.order == "frame":
            sure = torch.where(self.open, sure, 0.0).sum(0, keepdim=True).expand(shape)
        sure = sure.masked_fill(~self.open if config.remask else ~masked, torch.inf)
        self.codes = self.codes.clone()
        for level in levels:
            allowed = int(self.open[level].sum())
            left = min(masked_after(step, steps, allowed), int(torch.isfinite(sure[level]).sum()))
            self.codes[level] = codes[level]
            self.codes[level, sure[level].argsort(stable=True)[:left]] = self.n


def _predict(model: VallE, rows: Sequence[_Row], strength: float) -> list[Tensor]:
    """Log-probabilities float [l, T, n] of each row, guided away from the rows without text."""
    samples = [row.sample() for row in rows]
    guided = strength > 0
    packed = pack([*samples, *(s.without_text() for s in samples if guided)], model.layout).to(model.device)
    hidden = model.hidden(packed)
    found = []
    for i, row in enumerate(rows):
        conditioned = _log_p(model, hidden[i], int(packed.response[i]), row)
        if guided:
            null = len(rows) + i
            conditioned = guide(conditioned, _log_p(model, hidden[null], int(packed.response[null]), row), strength)
            conditioned = conditioned.log_softmax(-1)
        found.append(conditioned.cpu())
    return found


def _log_p(model: VallE, hidden: Tensor, start: int, row: _Row) -> Tensor:
    shown, frames = row.codes.shape
    states = model.heads.prepare(hidden[start + 1 : start + 1 + frames])
    logits = [model.heads(states, level, [])[:, : row.n].float() for level in range(shown)]
    return torch.stack(logits).log_softmax(-1)
