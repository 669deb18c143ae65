"""Iterative demasking: level 0 (NAR-len) or all levels of every frame (V2) from masks to codes.

Each step predicts what is masked, keeps the surest predictions and masks the rest for the next one, fewer each time
on a schedule (MaskGIT, 2202.04200, section 3.2; MaskGCT, 2409.00750, section 3.2.1). A step is one forward of the
frames alone, guided or not: what is before them is run once (``vall_e.models.parallel``).

Dimensions: R rows, l levels shown by a masked row, T frames, n codes per level, M positions that a step reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vall_e.decoding import DemaskConfig
from vall_e.family import by_order
from vall_e.generation.ar import Candidate
from vall_e.models.packing import Layout, Sample
from vall_e.models.parallel import ParallelPasses
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import sample
from vall_e.sampling.draw import gumbel
from vall_e.sampling.guidance import guide

SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the steps done → share still masked (2202.04200, 3.3)
    "cosine": lambda r: math.cos(math.pi / 2 * r),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "root": lambda r: 1 - math.sqrt(r),
}


def masked_after(step: int, steps: int, positions: Tensor, schedule: str = "cosine") -> Tensor:
    """How many of ``positions`` int64 [...] are still masked after ``step`` (from 1) of ``steps``."""
    share = SCHEDULES[schedule](step / steps) if step < steps else 0.0
    return (positions.double() * share).floor().long()


@torch.inference_mode()
def demask(
    model: VallE,
    prompts: Sequence[Sample],
    frames: Sequence[int],
    config: DemaskConfig,
    seeds: Sequence[int],
    given: Sequence[np.ndarray | None] | None = None,
    candidates: int = 1,
) -> list[list[Candidate]]:
    """Codes of responses whose lengths are known.

    Args:
        prompts: samples whose inputs to use.
        frames: T of each.
        config: steps, temperature, guidance and how they fall.
        seeds: one per prompt; candidate c draws from its own stream, so a row's draws do not depend on its batch.
        given: codes int64 [l, T] to start from, n where they are masked; what is given stays. None: all masked.
        candidates: rows for each prompt.

    Returns:
        per prompt its candidates, codes int64 [l, T]. Their score is the mean over what was masked of
        log p(code | text) - log p(code | no text), in nats, at the step that kept it; 0 for a single candidate drawn
        without guidance.

    Raises:
        ValueError: ``given`` of another shape, or an order of levels for a codec that has none.
    """
    rows = _Rows(model, prompts, frames, config, seeds, _start(model.layout, frames, given), candidates)
    for levels, steps in _stages(model.layout, config):
        for step in range(1, steps + 1):
            rows.step(levels, step, steps)
    return rows.collect()


def _start(layout: Layout, frames: Sequence[int], given: Sequence[np.ndarray | None] | None) -> list[np.ndarray]:
    """What is known of each row, int64 [l, T]."""
    found = []
    for index, length in enumerate(frames):
        codes = None if given is None else given[index]
        if codes is None:
            codes = np.full((layout.shown, length), layout.codes, dtype=np.int64)
        if codes.shape != (layout.shown, length) or codes.min(initial=0) < 0 or codes.max(initial=0) > layout.codes:
            raise ValueError(
                f"given codes are int64 [{layout.shown}, {length}] in 0..{layout.codes}, not {codes.shape} "
                f"in {codes.min(initial=0)}..{codes.max(initial=0)}"
            )
        found.append(codes)
    return found


def _stages(layout: Layout, config: DemaskConfig) -> list[tuple[range, int]]:
    """Levels that appear together and their steps, in turn."""
    order, shown = config.order, layout.shown
    if shown > 1:
        order = by_order("sampling.demask.order", order, layout.residual, ordered="level", alike="free")
    if order == "level":
        return [(range(level, level + 1), config.later_steps if level else config.steps) for level in range(shown)]
    return [(range(shown), config.steps)]


class _Rows:
    """Responses while they appear.

    Attributes:
        codes: int64 [R, l, T], n where they are masked and 0 in padding.
        open: bool [R, l, T], positions that were masked at the start.
        gains: float [R, l, T], what the text added to the log-probability of each code that was drawn.
    """

    def __init__(
        self,
        model: VallE,
        prompts: Sequence[Sample],
        frames: Sequence[int],
        config: DemaskConfig,
        seeds: Sequence[int],
        start: Sequence[np.ndarray],
        candidates: int,
    ) -> None:
        self.model, self.config, self.count, self.n = model, config, candidates, model.layout.codes
        self.frames = [length for length in frames for _ in range(candidates)]
        self.guided = any(len(p.text) for p in prompts) and (config.guidance > 0 or candidates > 1)
        null = [p.without_text() for p in prompts if self.guided]
        self.passes = ParallelPasses(model, [*prompts, *null], [*frames, *frames[: len(null)]], candidates)
        codes = np.zeros((len(prompts), model.layout.shown, max(frames)), dtype=np.int64)
        for row, known in zip(codes, start, strict=True):
            row[:, : known.shape[1]] = known
        self.codes = torch.from_numpy(codes).to(model.device).repeat_interleave(candidates, dim=0)
        self.open = self.codes == self.n
        self.gains = torch.zeros(self.codes.shape, device=model.device)
        streams = [(seed * 1_000_003 + 11 + 64 * c) % 2**63 for seed in seeds for c in range(candidates)]
        self.generators = [torch.Generator().manual_seed(stream) for stream in streams]

    def step(self, levels: range, step: int, steps: int) -> None:
        """Predict what is masked on ``levels``; mask again what is least sure."""
        config, at = self.config, slice(levels.start, levels.stop)
        masked = self.codes[:, at] == self.n
        going = masked.flatten(1).any(1)
        if not bool(going.any()):
            return
        frames = (self.open[:, at] if config.remask else masked).any(1) & going[:, None]
        progress = (step - 1) / (steps - 1) if steps > 1 else 1.0  # one step is the last
        strength = config.guidance * (1 - progress * config.anneal_guidance)
        temperature = config.temperature * (1 - progress * config.anneal_temperature)
        sure = torch.zeros_like(self.gains[:, at])
        row, frame = frames.nonzero(as_tuple=True)
        states = self._states(row, frame)
        for place, level in enumerate(levels):
            log_p, gain = self._log_p(states, level, strength)
            drawn = sample(
                log_p, self._noise(frames, self.n, temperature > 0), temperature=temperature, top_k=config.top_k,
                top_p=config.top_p,
            )  # fmt: skip
            hidden = masked[row, place, frame]
            code = torch.where(hidden, drawn, self.codes[row, level, frame].clamp(max=self.n - 1))
            self.codes[row, level, frame] = code
            if gain is not None:
                kept = self.gains[row, level, frame]
                self.gains[row, level, frame] = torch.where(hidden, gain.gather(1, code[:, None])[:, 0], kept)
            # How sure: of the prediction itself, before filters and temperature.
            choice = config.choice_temperature * (1 - step / steps)
            shaken = self._noise(frames, 1, choice > 0)[:, 0]
            sure[row, place, frame] = log_p.gather(1, code[:, None])[:, 0] + choice * shaken
        self._mask_again(at, masked, sure, step, steps)

    def _mask_again(self, at: slice, masked: Tensor, sure: Tensor, step: int, steps: int) -> None:
        """Of the positions ``masked`` bool [R, l', T] before this step (with ``remask`` of all that were ever masked)
        those that are least ``sure``, float [R, l', T]."""
        opened = self.open[:, at]
        if self.config.order == "frame":
            sure = torch.where(opened, sure, 0.0).sum(1, keepdim=True).expand_as(sure)
        free = opened if self.config.remask else masked
        left = masked_after(step, steps, opened.sum(-1), self.config.schedule).minimum(free.sum(-1))
        rank = sure.masked_fill(~free, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
        self.codes[:, at] = self.codes[:, at].masked_fill(rank < left[..., None], self.n)

    def _states(self, row: Tensor, frame: Tensor) -> Tensor:
        """What the heads read at M positions: of the rows with text, then of those without."""
        codes = self.codes.repeat(2, 1, 1) if self.guided else self.codes
        hidden = self.passes(codes, "mask")
        rows = torch.cat((row, row + len(self.codes))) if self.guided else row
        return self.model.heads.prepare(hidden[rows, frame.repeat(2) if self.guided else frame])

    def _log_p(self, states: Tensor, level: int, strength: float) -> tuple[Tensor, Tensor | None]:
        """Guided log-probabilities float [M, n], and what the text adds to them."""
        log_p = self.model.heads(states, level, [])[:, : self.n].float().log_softmax(-1)
        if not self.guided:
            return log_p, None
        log_p, null = log_p.chunk(2)
        guided = guide(log_p, null, strength).log_softmax(-1) if strength > 0 else log_p
        return guided, log_p - null

    def _noise(self, frames: Tensor, width: int, wanted: bool) -> Tensor:
        """Gumbel noise float [M, width], each row's from its own generator; zeros where none is ``wanted``."""
        counts = frames.sum(1).tolist()
        if not wanted:
            return torch.zeros(sum(counts), width, device=frames.device)
        drawn = [gumbel((count, width), generator) for count, generator in zip(counts, self.generators, strict=True)]
        return torch.cat(drawn).to(frames.device)

    def collect(self) -> list[list[Candidate]]:
        scores = (self.gains.sum((1, 2)) / self.open.sum((1, 2)).clamp(min=1)).tolist()
        codes = self.codes.cpu().numpy()
        rows = [Candidate(codes[i, :, :t], True, scores[i]) for i, t in enumerate(self.frames)]
        return [rows[i : i + self.count] for i in range(0, len(rows), self.count)]
