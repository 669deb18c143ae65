"""The one loop that decodes left to right: frames of codes, or written symbols.

Prompts are prefilled together, once each, and shared between their candidates. Every step is one forward over the rows
that are live: rows that have stopped leave, new ones may join between two steps. With ``sampling.speculation`` a step
yields several frames, the same ones (``vall_e.generation.speculative``).

Guided rows have a twin without text, right behind them in the cache and in the hidden states.
Dimensions: R live rows, l levels shown by a causal row, k frames a step, T frames, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vall_e.decoding import AHEAD, SamplingConfig, SamplingParams
from vall_e.generation.speculative import Drafter, drafter_of
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.nn.cache import Cache
from vall_e.sampling.chain import Chain
from vall_e.sampling.guidance import guide
from vall_e.sampling.noise import RowNoise
from vall_e.sampling.penalties import centred
from vall_e.tasks import Vocabulary

ROOM = 256  # frames or symbols that there is room for at first


@dataclass(frozen=True)
class Candidate:
    """One decoded row.

    Attributes:
        codes: int64 [l, T], l levels shown by a causal row; [1, T] symbols of a task that writes.
        finished: it stopped by itself.
        score: mean over frames of log p(code | text) - log p(code | no text), in nats; the codes of level 0.
        alignment: see ``vall_e.generation.alignment``; 0 for a model without that head.
    """

    codes: np.ndarray
    finished: bool
    score: float
    alignment: float = 0.0


@dataclass
class Row:
    """What one candidate has said so far.

    Attributes:
        limit: frames or symbols after which it is cut off.
        shortest: frames or symbols before which it may not stop.
        done: nothing more will come.
        told: its score is what it will be.
        finished: it stopped by itself.
        score: see ``Candidate``, once it is done.
    """

    levels: int
    limit: int
    shortest: int = 0
    done: bool = False
    told: bool = False
    finished: bool = False
    score: float = 0.0
    _said: np.ndarray = field(init=False)
    _count: int = 0

    def __post_init__(self) -> None:
        # One array: a small one kept of each frame would lie between the scratch memory of the steps, which grows from
        # step to step and would never fit into a gap again.
        self._said = np.empty((self.levels, min(self.limit, ROOM)), dtype=np.int64)

    @property
    def count(self) -> int:
        """Frames so far."""
        return self._count

    @property
    def codes(self) -> np.ndarray:
        """int64 [l, T], to look at: it lies where later frames will be added."""
        return self._said[:, : self._count]

    def take(self, block: np.ndarray, stop: int) -> None:
        """Go on with ``block`` int64 [l, k], up to the first ``stop`` on level 0 or the limit."""
        if block.shape[1] > 1 or block[0, 0] == stop:
            ends = np.flatnonzero(block[0] == stop)
            room = self.limit - self._count
            if len(ends) and ends[0] < room:
                block, self.finished = block[:, : ends[0]], True
            block = block[:, :room]
        first, self._count = self._count, self._count + block.shape[1]
        if self._count > self._said.shape[1]:
            self._said = np.concatenate((self._said, np.empty((self.levels, self._count), dtype=np.int64)), axis=1)
        self._said[:, first : self._count] = block
        self.done = self.finished or self._count >= self.limit

    def candidate(self) -> Candidate:
        return Candidate(self.codes.copy(), self.finished, self.score)


@dataclass(frozen=True)
class Ticket:
    """A prompt that is being answered.

    Attributes:
        rows: one a candidate.
    """

    rows: list[Row]

    @property
    def done(self) -> bool:
        return all(row.done for row in self.rows)

    def candidates(self) -> list[Candidate]:
        return [row.candidate() for row in self.rows]


class Engine:
    """A batch that is decoded.

    Args:
        model: in evaluation mode; ``vall_e.models.formats.use_weights`` makes it fast.
        sampling: how everything is drawn; ``candidates`` rows for each prompt.
        vocabulary: what all rows of this batch write.
        draft: a smaller model of the same codes and phones that drafts for ``sampling.speculation``; None: the model's
            own first layers.

    Raises:
        ValueError: the model cannot draft as ``sampling.speculation`` asks, or entropix with compiled steps.
    """

    def __init__(
        self,
        model: VallE,
        sampling: SamplingConfig,
        vocabulary: Vocabulary = "codes",
        draft: VallE | None = None,
    ) -> None:
        self.model, self.sampling, self.vocabulary = model, sampling, vocabulary
        layout, codes = model.layout, vocabulary == "codes"
        self.stop, self.block = layout.stop(vocabulary), layout.block if codes else 1
        self.shown = layout.shown if codes else 1
        self.static = model.backbone.compiled
        if sampling.ar.entropix and self.static:
            raise ValueError(
                "sampling.ar.entropix looks at what layers attend to, which compiled steps do not tell: leave out "
                "--entropix or --compile"
            )
        self.watches = sampling.ar.entropix
        self.seen: Tensor | None = None  # of the last forward, float [R or 2R, H, T, S], where entropix asks
        self.rows: list[Row] = []
        self.cache: Cache | None = None
        self.guided = False
        self.drafter: Drafter | None = drafter_of(self, draft) if sampling.speculation is not None else None

    def add(
        self,
        prompts: Sequence[Sample],
        seeds: Sequence[int],
        longest: Sequence[int],
        shortest: Sequence[int] | None = None,
    ) -> list[Ticket]:
        """Let prompts join; the first block of each is drawn at once.

        Args:
            prompts: samples; a response that they hold already is a prefix to go on from.
            seeds: one per prompt; candidate c draws from its own stream, so results do not depend on the batch.
            longest: per prompt, the frames or symbols after which a row is cut off (``finished`` is then False).
            shortest: per prompt, the frames or symbols before which a row may not stop; None is 0.

        Raises:
            ValueError: a prompt of another vocabulary, or one with text among rows without.
        """
        if any(p.vocabulary != self.vocabulary or p.mode != "ar" for p in prompts):
            raise ValueError("rows of one batch are all autoregressive and write in one vocabulary")
        compared = self.sampling.guidance > 0 or self.sampling.candidates > 1
        # What is written was never trained without its text.
        guided = compared and self.vocabulary == "codes" and any(len(p.text) for p in prompts)
        if self.rows and guided != self.guided:
            raise ValueError("rows with text and rows without any do not join one another: take an engine for each")
        self.guided = guided
        with torch.inference_mode():
            return self._add(prompts, seeds, list(zip(longest, shortest or [0] * len(prompts), strict=True)))

    def step(self) -> int:
        """One forward: a block of frames (or more, with speculation) or a symbol for every live row.

        Returns:
            how many rows are live after it.
        """
        if self.rows:
            with torch.inference_mode():
                (self.drafter or self).advance()
                self._leave()
        return sum(not row.done for row in self.rows)

    def _add(self, prompts: Sequence[Sample], seeds: Sequence[int], bounds: Sequence[tuple[int, int]]) -> list[Ticket]:
        model, layout, count, device = self.model, self.model.layout, self.sampling.candidates, self.model.device
        batch = [row for p in prompts for row in ((p, p.without_text()) if self.guided else (p,))]
        packed = pack(batch, layout).to(device)
        fresh = model.backbone.new_cache(len(batch), packed.symbol.shape[1], model.dtype, device)
        hidden = model.prefill(packed, fresh, self.block)
        twins = 2 if self.guided else 1
        share = [twins * i + t for i in range(len(prompts)) for _ in range(count) for t in range(twins)]
        if self.cache is None or not self.rows:
            self.cache = model.backbone.new_cache(0, packed.symbol.shape[1], model.dtype, device)
        if self.static or device.type == "cpu":  # elsewhere memory is taken when it is reserved: let it grow
            left = [row.limit - row.count for row in self.rows] + [limit for limit, _ in bounds]
            ahead = 1 + self.sampling.speculation.draft if self.drafter is not None else self.block
            self.cache.reserve(max(self.cache.known + fresh.known) + max(left) + ahead)
        self.cache.extend(fresh, share)
        tickets = [Ticket([Row(self.shown, *bound) for _ in range(count)]) for bound in bounds]
        rows = [row for ticket in tickets for row in ticket.rows]
        streams = [(seed * 1_000_003 + c) % 2**63 for seed in seeds for c in range(count)]
        past = [torch.tensor(p.begun) for p in prompts for _ in range(count)]
        state, self.seen = _State(self, rows, streams, past), None
        pending = state.draw(hidden[torch.tensor(share, device=device)])
        if self.rows:
            self.state.extend(state)
            self.pending = torch.cat((self.pending, pending))
        else:
            self.state, self.pending = state, pending
        self.rows = self.rows + rows
        if self.drafter is not None:
            self.drafter.add(prompts, count)
        self._leave()
        return tickets

    def forward(self, codes: Tensor, layers: int | None = None) -> Tensor:
        """Codes int64 [R, l, T] (or symbols [R, 1, 1]) go in → hidden states [R or 2R, T, D]."""
        if self.guided:
            codes = codes.repeat_interleave(2, dim=0)
        with self.model.backbone.watched() if self.watches else nullcontext() as watch:
            if self.vocabulary != "codes":
                out = self.model.step_symbol(codes[:, 0, 0], self.vocabulary, self.cache)
            else:
                out = self.model.step(codes, self.cache, layers)
        self.seen = None if watch is None else watch.weights
        return out

    def advance(self) -> None:
        """Show every row what it said last, and let it say the next block."""
        self.pending = self.state.draw(self.forward(self.pending))

    def _leave(self) -> None:
        """Rows that are done leave the batch; the last ones take their places."""
        live = [slot for slot, row in enumerate(self.rows) if not row.done]
        if len(live) == len(self.rows):
            return
        for row, score in zip(self.rows, self.state.scores.tolist(), strict=True):
            if row.done and not row.told:
                row.score, row.told = score / max(1, row.count), True
        if self.static and 2 * len(live) > len(self.rows):
            return  # a step is compiled for each number of rows: let there be few
        tail = iter(slot for slot in live if slot >= len(live))
        order = [slot if not self.rows[slot].done else next(tail) for slot in range(len(live))]
        self.rows = [self.rows[slot] for slot in order]
        if self.drafter is not None:
            self.drafter.keep(order)
        if not order:
            self.cache = None
            return
        self.cache.keep([2 * slot + t for slot in order for t in range(2)] if self.guided else order)
        self.state.keep(order)
        self.pending = self.pending[torch.tensor(order, device=self.pending.device)]


class _State:
    """What drawing has to remember of R rows, each of which goes on from its ``past`` int64 [P] of level 0."""

    def __init__(self, engine: Engine, rows: Sequence[Row], streams: Sequence[int], past: Sequence[Tensor]) -> None:
        model, params = engine.model, engine.sampling.ar
        size, device = model.layout.size(engine.vocabulary), model.device
        self.engine, self.rows = engine, list(rows)
        self.noise = RowNoise(streams, (engine.shown, size), device, AHEAD)
        self.chains = [Chain(params, len(rows), size, device, engine.stop, past)]
        later = SamplingParams(**params.filters)  # of one distribution only: what is remembered is of level 0
        self.chains += [Chain(later, len(rows), size - 1, device, None) for _ in range(1, engine.shown)]
        self.remembers = params.remembers
        self.scores = torch.zeros(len(rows), device=device)

    def draw(self, hidden: Tensor) -> Tensor:
        """A block from hidden states [R or 2R, k, D]: written down in the rows, and returned as what the next forward
        is to see, codes int64 [R, l, k]."""
        noise = self.noise.ahead(hidden.shape[1])
        frames: list[Tensor] = []
        for at in range(hidden.shape[1]):
            before = self.scores
            seen = None if self.engine.seen is None else self.engine.seen[:, :, at]
            frames.append(self.frame(hidden[:, at], noise[:, at], [at], attention=seen))
            if at and self.engine.guided:  # behind a stop in this block nothing counts
                ended = torch.stack([codes[:, 0] == self.engine.stop for codes in frames[:-1]]).any(0)
                self.scores = torch.where(ended, before, self.scores)
        self.noise.skip(len(frames))
        codes = torch.stack(frames, dim=-1) if len(frames) > 1 else frames[0][..., None]
        for row, block in zip(self.rows, codes.cpu().numpy(), strict=True):
            if not row.done:
                row.take(block, self.engine.stop)
        return codes.clamp(max=self.engine.stop - 1) if self.engine.static else codes

    def frame(
        self,
        hidden: Tensor,
        noise: Tensor,
        ahead: Sequence[int],
        model: VallE | None = None,
        attention: Tensor | None = None,
    ) -> Tensor:
        """Codes int64 [M, l] of frames that may be drawn at once, from ``hidden`` [M or 2M, D] and noise [M, l, V]; the
        stop symbol on level 0 ends a row.

        Args:
            ahead: which frames behind those that a row has: M is R times so many.
            model: the one whose states they are, where it is not the engine's.
            attention: float [M or 2M, H, S], what the last layer attended to; see ``entropix``.
        """
        engine, first = self.engine, self.chains[0]
        model = model or engine.model
        states, logits = model.first(hidden, engine.vocabulary)
        if engine.guided:
            log_p = logits.log_softmax(-1)
            conditioned, null, states = log_p[0::2], log_p[1::2], states[0::2]
            logits = guide(conditioned, null, engine.sampling.guidance, engine.sampling.guidance_rescale)
            attention = None if attention is None else attention[0::2]
        if self.remembers:
            logits = centred(logits)  # penalties divide what is above the mean, wherever the logits have their zero
        if any(row.count < row.shortest for row in self.rows):
            early = [row.count + a < row.shortest for row in self.rows for a in ahead]
            blocked = torch.tensor(early, device=logits.device)
            logits = logits.clone()
            logits[:, engine.stop].masked_fill_(blocked, -torch.inf)
        code = first.draw(logits, noise[:, 0], attention)
        if self.remembers:
            first.observe(code)
        if engine.guided:
            self.scores = self.scores + (conditioned - null).gather(1, code[:, None])[:, 0]
        if engine.shown == 1:
            return code[:, None]
        # What a row that stops here draws on its other levels does not matter, as long as it is a code.
        drawn = [code.clamp(max=engine.stop - 1)]
        for level, chain in enumerate(self.chains[1:], 1):
            level_logits = model.heads(states, level, drawn).float()
            drawn.append(chain.draw(level_logits, noise[:, level, : level_logits.shape[1]]))
        return torch.stack((code, *drawn[1:]), dim=1)

    def keep(self, order: Sequence[int]) -> None:
        """Go on with the rows at ``order`` only."""
        index = torch.tensor(order, device=self.scores.device)
        self.rows, self.scores = [self.rows[slot] for slot in order], self.scores[index]
        self.noise.select(order)
        for chain in self.chains:
            chain.select(index)

    def extend(self, other: _State) -> None:
        """Take the rows of another one in, behind those that are there."""
        self.rows, self.scores = self.rows + other.rows, torch.cat((self.scores, other.scores))
        self.noise.extend(other.noise)
        for mine, theirs in zip(self.chains, other.chains, strict=True):
            mine.extend(theirs)
