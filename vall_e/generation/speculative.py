"""Speculative decoding: something quick drafts frames, the whole model checks all of them in one forward.

Drafter and model draw with the same noise, frame by frame (Gumbel coupling: drafter-invariant speculative decoding,
2408.07978, section 3). A drafted frame that equals what the model draws is kept with those before it; the first other
one is replaced by the model's. So whatever drafts, and however badly, what is said is exactly what plain decoding says
with the same seed: greedy or drawn.

Two things can draft: the model's own first layers (LayerSkip, 2404.16710, section 4.3), or a smaller model
(2211.17192).
How many frames are drafted follows from what was accepted and from how long passes took, down to none at all.
Dimensions: R rows, l levels shown by a causal row, n drafted frames.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.nn.cache import Cache

if TYPE_CHECKING:
    from vall_e.generation.engine import Engine

SMOOTHING = 0.9  # of acceptance and of times, from one step to the next
PROBE_EVERY = 48  # steps without drafts after which one is tried again
FIRST_GUESS = 0.7  # of the share of drafted frames that is accepted


def drafter_of(engine: Engine, draft: VallE | None) -> Drafter:
    """What drafts for ``engine``, by the rules of ``sampling.speculation``.

    Raises:
        ValueError: the backbone cannot go back or take several frames at once, or not exit early, or has too few
            layers; or the drafting model has other codes or phones.
    """
    model, rules = engine.model, engine.sampling.speculation
    can = model.backbone.capabilities
    if not (can.rewind and can.multi_token and (draft is not None or can.early_exit)):
        raise ValueError(f"sampling.speculation: the backbone {model.config.backbone} cannot draft and take back")
    if model.layout.block > 1 or engine.vocabulary != "codes":
        raise ValueError("sampling.speculation drafts single frames of codes: causal_size 1, and no task that writes")
    if draft is None:
        if rules.exit_layer is None:
            raise ValueError("sampling.speculation: set exit_layer, or give a smaller voice that drafts")
        if rules.exit_layer > model.config.layers:
            raise ValueError(f"sampling.speculation.exit_layer: the model has only {model.config.layers} layers")
        return EarlyExit(engine, rules.exit_layer)
    ours, theirs = (
        (m.layout.codes, m.layout.levels, m.layout.phones, m.layout.shown, m.layout.block) for m in (model, draft)
    )
    if ours != theirs or not draft.backbone.capabilities.rewind:
        raise ValueError("sampling.speculation: what drafts needs the model's codes, levels and phones, and a way back")
    return Smaller(engine, draft)


class Drafter(ABC):
    """What drafts for an engine. Subclasses say how."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.pace = engine, Pace(engine.sampling.speculation.draft)

    @abstractmethod
    def draft(self, count: int, noise: Tensor) -> list[Tensor]:
        """``count`` frames int64 [R, l] behind the pending one, drawn with ``noise`` float [R, count, l, V]."""

    def add(self, prompts: Sequence[Sample], candidates: int) -> None:
        """Rows have joined."""
        return

    def keep(self, order: Sequence[int]) -> None:
        """Only the rows at ``order`` go on."""
        return

    def skipped(self, shown: Tensor) -> None:
        """A plain step shows frames int64 [R, l, 1] to the model."""
        return

    def took(self, counts: Sequence[int]) -> None:
        """So many frames of those that each row was shown, the pending one and drafts, have become its past."""
        return

    def advance(self) -> None:
        """One step, with as many drafts as pay."""
        engine, state, count = self.engine, self.engine.state, self.pace.drafts()
        started = time.perf_counter()
        if count == 0:
            self.skipped(engine.pending)
            engine.advance()
            self.pace.plain(time.perf_counter() - started)
            return
        noise, before = state.noise.ahead(count + 1), list(engine.cache.known)
        drafts = self.draft(count, noise)
        drafted = time.perf_counter()
        hidden = engine.forward(torch.cat((engine.pending, torch.stack(drafts, dim=-1)), dim=-1))
        rows = len(hidden)
        seen = None if engine.seen is None else engine.seen.transpose(1, 2).flatten(0, 1)
        found = state.frame(hidden.flatten(0, 1), noise.flatten(0, 1), range(count + 1), attention=seen)
        found = found.unflatten(0, (rows, count + 1))  # [R, n + 1, l]
        same = (found[:, :-1] == torch.stack(drafts, dim=1)).all(-1)
        taken = (1 + same.cumprod(1).sum(1)).tolist()
        for row, block, frames in zip(engine.rows, found.transpose(1, 2).cpu().numpy(), taken, strict=True):
            if not row.done:
                row.take(block[:, :frames], engine.stop)
        engine.cache.rewind([past + frames for past, frames in zip(before, taken, strict=True)])
        state.noise.skip(taken)
        last = torch.tensor(taken, device=found.device) - 1
        engine.pending = found[torch.arange(rows, device=found.device), last][..., None]
        self.took(taken)
        accepted, refused = sum(taken) - rows, sum(frames <= count for frames in taken)
        self.pace.speculative(count, accepted, refused, drafted - started, time.perf_counter() - drafted)


class EarlyExit(Drafter):
    """The model's own first layers."""

    def __init__(self, engine: Engine, layers: int) -> None:
        super().__init__(engine)
        self.layers = layers

    def draft(self, count: int, noise: Tensor) -> list[Tensor]:
        engine, drafts = self.engine, []
        before, codes = list(engine.cache.known), engine.pending
        for at in range(count):
            frame = engine.state.frame(engine.forward(codes, self.layers)[:, 0], noise[:, at], [at])
            drafts.append(frame.clamp(max=engine.stop - 1))
            codes = drafts[-1][..., None]
        engine.cache.rewind(before)
        return drafts


class Smaller(Drafter):
    """Another model, with a cache of its own that holds what the engine's holds."""

    def __init__(self, engine: Engine, model: VallE) -> None:
        super().__init__(engine)
        self.model: VallE = model
        self.cache: Cache | None = None
        self.behind: list[Tensor] = []  # frames of plain steps, which the drafting model has not seen

    def add(self, prompts: Sequence[Sample], candidates: int) -> None:
        packed = pack(prompts, self.model.layout).to(self.model.device)
        rows, size = packed.symbol.shape[0], packed.symbol.shape[1]
        fresh = self.model.backbone.new_cache(rows, size, self.model.dtype, self.model.device)
        self.model.prefill(packed, fresh)
        if self.cache is None:
            self.cache = self.model.backbone.new_cache(0, size, self.model.dtype, self.model.device)
        if self.behind:
            self.model.step(torch.cat(self.behind, dim=-1), self.cache)
            self.behind = []
        self.cache.extend(fresh, [row for row in range(rows) for _ in range(candidates)])

    def keep(self, order: Sequence[int]) -> None:
        if not order:
            self.cache, self.behind = None, []
            return
        self.cache.keep(order)
        index = torch.tensor(order, device=self.model.device)
        self.behind = [frames[index] for frames in self.behind]

    def skipped(self, shown: Tensor) -> None:
        self.behind.append(shown)

    def draft(self, count: int, noise: Tensor) -> list[Tensor]:
        drafts: list[Tensor] = []
        shown = torch.cat((*self.behind, self.engine.pending), dim=-1)
        self.before = [past + len(self.behind) for past in self.cache.known]
        self.behind = []
        for at in range(count):
            hidden = self.model.step(shown, self.cache)[:, -1]
            frame = self.engine.state.frame(hidden, noise[:, at], [at], self.model)
            drafts.append(frame.clamp(max=self.engine.stop - 1))
            shown = drafts[-1][..., None]
        self.last = shown
        return drafts

    def took(self, counts: Sequence[int]) -> None:
        wanted = [past + count for past, count in zip(self.before, counts, strict=True)]
        if any(want > known for want, known in zip(wanted, self.cache.known, strict=True)):
            self.model.step(self.last, self.cache)  # all was accepted: the last draft was not shown yet
        self.cache.rewind(wanted)


class Pace:
    """How many frames to draft: as many as give the most frames in the time, by what was seen so far.

    Args:
        most: drafted frames.
    """

    def __init__(self, most: int) -> None:
        self.choices = [n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n < most] + [most]
        self.accepted = FIRST_GUESS  # share of drafted frames
        self.plain_seconds: float | None = None
        self.draft_seconds: float | None = None  # of one frame
        self.check_seconds: dict[int, float] = {}  # of n drafted frames
        self.since = 0  # plain steps since the last draft

    def drafts(self) -> int:
        """How many frames to draft now; 0 for a plain step."""
        if self.plain_seconds is None:
            return 0
        if self.draft_seconds is None:
            return self.choices[0]
        best = max([0, *self.choices], key=self._frames_per_second)
        if best == 0 and self.since >= PROBE_EVERY:
            return self.choices[0]
        return best

    def _frames_per_second(self, drafts: int) -> float:
        if drafts == 0:
            return 1 / self.plain_seconds
        a = min(self.accepted, 0.999)
        frames = (1 - a ** (drafts + 1)) / (1 - a)
        known = min(self.check_seconds, key=lambda n: abs(n - drafts))
        extra = max(0.0, self.check_seconds[known] - self.plain_seconds) / known  # per frame that is checked
        check = self.check_seconds[known] + extra * (drafts - known)
        return frames / (drafts * self.draft_seconds + check)

    def plain(self, seconds: float) -> None:
        """A plain step took so long."""
        self.plain_seconds = _smooth(self.plain_seconds, seconds)
        self.since += 1

    def speculative(self, drafts: int, accepted: int, refused: int, draft_seconds: float, check_seconds: float) -> None:
        """So many frames were drafted for each row; of all rows' ``accepted`` were kept, and ``refused`` rows met one
        that was not."""
        self.accepted = _smooth(self.accepted, accepted / (accepted + refused))
        self.draft_seconds = _smooth(self.draft_seconds, draft_seconds / drafts)
        self.check_seconds[drafts] = _smooth(self.check_seconds.get(drafts), check_seconds)
        self.since = 0


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else SMOOTHING * before + (1 - SMOOTHING) * now
