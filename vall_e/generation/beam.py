"""Beam search: the likeliest output instead of a drawn one (Sequence to sequence, 1409.3215, section 3.2).

Each prompt keeps its likeliest hypotheses, each with a history and a cache of its own; what goes on from the same
hypothesis shares its past until then. The hypothesis that greedy decoding would follow always keeps a place, so that
the result never ranks below greedy's. Kinds whose frames have several levels search over level 0; the others are each
frame's likeliest.

Dimensions: P prompts, R live hypotheses of all prompts, V vocabulary, D width, l levels shown by a causal row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vall_e.decoding import SamplingConfig
from vall_e.generation.engine import Candidate
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import Chain
from vall_e.sampling.guidance import guide
from vall_e.sampling.penalties import centred

UNFILTERED = {"temperature": 1.0, "min_temperature": None, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "top_n_sigma": 0.0}


def beam_search(
    model: VallE,
    prompts: Sequence[Sample],
    sampling: SamplingConfig,
    longest: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
    shortest: Sequence[int] | None = None,
) -> list[list[Candidate]]:
    """The best output of each prompt by ``sampling.beam``.

    Of ``sampling.ar`` what is banned and what penalises holds, each hypothesis with its own history; temperature and
    filters have nothing to do here.

    Args:
        prompts: P samples whose tasks have the same output vocabulary; a response that they hold already is a prefix
            to go on from.
        longest: per prompt, the frames or symbols after which a hypothesis is cut off (``finished`` is then False).
        progress: called with (frames so far, live hypotheses).
        shortest: per prompt, the frames or symbols before which a hypothesis may not stop; None is 0.

    Returns:
        per prompt one candidate, whose ``score`` is the sum of log p of its codes of level 0, stop included, in nats,
        over their number ** ``length_penalty``. A finished hypothesis goes before any that is cut off.

    Raises:
        ValueError: no ``sampling.beam``; rows that are not autoregressive or write in several vocabularies; a model
            that draws several frames at once.
    """
    if sampling.beam is None:
        raise ValueError("beam search needs sampling.beam, with its width")
    if any(p.vocabulary != prompts[0].vocabulary or p.mode != "ar" for p in prompts):
        raise ValueError("rows of one batch are all autoregressive and write in one vocabulary")
    if prompts[0].vocabulary == "codes" and model.layout.block > 1:
        raise ValueError(f"beam search goes frame by frame and model.causal_size is {model.layout.block}: draw instead")
    with torch.inference_mode():
        return _Search(model, prompts, sampling, longest, shortest or [0] * len(prompts)).run(progress)


@dataclass
class _Beam:
    """The search of one prompt: hypotheses that have ended, and where it still goes on.

    Attributes:
        ended: candidates in any order, codes with no stop.
        greedy: row of the hypothesis that greedy decoding follows; None when it has ended.
        open: it goes on.
    """

    width: int
    limit: int
    shortest: int = 0
    ended: list[Candidate] = field(default_factory=list)
    greedy: int | None = 0
    open: bool = True

    def best(self) -> Candidate:
        return max(self.ended, key=lambda c: (c.finished, c.score))

    def settled(self, live: float) -> bool:
        """Enough has ended, and nothing live scores above it: ``live`` is the best score of what goes on."""
        if self.greedy is not None or len(self.ended) < self.width:
            return False
        return sorted((c.score for c in self.ended), reverse=True)[self.width - 1] >= live


@dataclass(frozen=True)
class _Next:
    """A hypothesis one symbol longer: the row that it goes on from, its new symbol, sum of log p."""

    row: int
    symbol: int
    total: float


class _Search:
    """The state of one batch. Rows of one prompt are neighbours, and prompts are in order."""

    def __init__(
        self,
        model: VallE,
        prompts: Sequence[Sample],
        sampling: SamplingConfig,
        longest: Sequence[int],
        shortest: Sequence[int],
    ) -> None:
        self.model, self.sampling, self.vocabulary = model, sampling, prompts[0].vocabulary
        layout = model.layout
        self.codes = self.vocabulary == "codes"
        self.stop, self.shown = layout.stop(self.vocabulary), layout.shown if self.codes else 1
        self.guided = sampling.guidance > 0 and any(len(p.text) for p in prompts)
        packed = pack([*prompts, *(p.without_text() for p in prompts if self.guided)], layout).to(model.device)
        size = packed.symbol.shape[1] + max(longest) + 1
        self.cache = model.backbone.new_cache(len(packed.symbol), size, model.dtype, model.device)
        self.last = model.prefill(packed, self.cache)[:, 0]  # [R, D], with guidance [2R, D]
        bounds = zip(longest, shortest, strict=True)
        self.beams = [_Beam(sampling.beam.width, *bound, greedy=i) for i, bound in enumerate(bounds)]
        penalties = sampling.ar.model_copy(update=UNFILTERED)
        past = [torch.tensor(p.begun) for p in prompts]
        self.chain = Chain(penalties, len(prompts), layout.size(self.vocabulary), model.device, self.stop, past)
        self.owner = list(range(len(prompts)))  # of each row
        self.totals = torch.zeros(len(prompts), dtype=torch.float64, device=model.device)
        self.out = torch.zeros(len(prompts), self.shown, 0, dtype=torch.int64, device=model.device)

    def run(self, progress: Callable[[int, int], None] | None) -> list[list[Candidate]]:
        for length in range(1, max(beam.limit for beam in self.beams) + 1):
            going = self._choose(length)
            if not going:
                break
            self._go_on(going)
            if progress is not None:
                progress(length, len(going))
        return [[beam.best()] for beam in self.beams]

    def _choose(self, length: int) -> list[_Next]:
        """What goes on, of all prompts; what ends at ``length`` symbols is written down."""
        log_p = self._log_p()
        early = [row for row, owner in enumerate(self.owner) if length <= self.beams[owner].shortest]
        log_p[early, self.stop] = -torch.inf
        totals = self.totals[:, None] + log_p
        likeliest = log_p.argmax(-1).tolist()
        going: list[_Next] = []
        for index in sorted(set(self.owner)):
            beam, first = self.beams[index], self.owner.index(index)
            own = totals[first : first + self.owner.count(index)]
            values, places = own.flatten().topk(min(2 * beam.width, own.numel()))
            ranked = [
                _Next(first + place // own.shape[1], place % own.shape[1], value)
                for value, place in zip(values.tolist(), places.tolist(), strict=True)
                if value > -torch.inf
            ]
            greedy = None if beam.greedy is None else (beam.greedy, likeliest[beam.greedy])
            kept = self._kept(beam, ranked, greedy, totals, length)
            if length == beam.limit:
                self._end(beam, kept, length, finished=False)
            elif kept and not beam.settled(max(self._score(n.total, length) for n in kept)):
                places = [(n.row, n.symbol) for n in kept]
                beam.greedy = None if beam.greedy is None else len(going) + places.index(greedy)
                going += kept
        return going

    def _kept(
        self, beam: _Beam, ranked: list[_Next], greedy: tuple[int, int] | None, totals: Tensor, length: int
    ) -> list[_Next]:
        """The continuations that do not stop, ``width`` at most; those among the best that stop are written down.

        Greedy decoding's own is always among them."""
        stopped = [n for n in ranked[: beam.width] if n.symbol == self.stop]
        kept = [n for n in ranked if n.symbol != self.stop][: beam.width]
        if greedy is not None and greedy not in [(n.row, n.symbol) for n in (*stopped, *kept)]:
            forced = _Next(*greedy, float(totals[greedy]))
            if forced.symbol == self.stop:
                stopped.append(forced)
            else:
                kept[-1:] = [forced]
        self._end(beam, stopped, length, finished=True)
        if greedy is not None and greedy[1] == self.stop:
            beam.greedy = None
        return kept

    def _end(self, beam: _Beam, ends: list[_Next], length: int, *, finished: bool) -> None:
        """Write hypotheses down; those that are cut off with their last symbol."""
        if not ends:
            return
        codes = self.out[[end.row for end in ends]]
        if not finished:
            codes = torch.cat((codes, self._frames(ends)[..., None]), dim=-1)
        for own, end in zip(codes.cpu().numpy(), ends, strict=True):
            beam.ended.append(Candidate(own, finished, self._score(end.total, length)))

    def _score(self, total: float, length: int) -> float:
        return total / length**self.sampling.beam.length_penalty

    def _log_p(self) -> Tensor:
        """Log-probabilities float64 [R, V] of what comes next, penalties included."""
        rows = len(self.owner)
        log_p = self.model.first(self.last, self.vocabulary)[1].log_softmax(-1)
        if self.guided:
            log_p = guide(log_p[:rows], log_p[rows:], self.sampling.guidance, self.sampling.guidance_rescale)
        return self.chain.warp(centred(log_p)).double().log_softmax(-1)

    def _frames(self, chosen: Sequence[_Next]) -> Tensor:
        """The symbols of ``chosen`` with the likeliest codes of the later levels, int64 [R', l]."""
        rows = torch.tensor([n.row for n in chosen], device=self.last.device)
        drawn = [torch.tensor([n.symbol for n in chosen], device=self.last.device)]
        if self.shown > 1:
            states = self.model.heads.prepare(self.last[rows])
            for level in range(1, self.shown):
                drawn.append(self.model.heads(states, level, drawn).argmax(-1))
        return torch.stack(drawn, dim=1)

    def _go_on(self, chosen: Sequence[_Next]) -> None:
        """Take the rows of ``chosen`` and show the model what is new in them."""
        rows, frames = torch.tensor([n.row for n in chosen], device=self.last.device), self._frames(chosen)
        before = len(self.owner)
        self.chain.select(rows)
        self.chain.observe(frames[:, 0])
        self.owner = [self.owner[n.row] for n in chosen]
        self.totals = self.totals.new_tensor([n.total for n in chosen])
        self.out = torch.cat((self.out[rows], frames[..., None]), dim=-1)
        if rows.tolist() != list(range(before)):
            self.cache = self.cache.select(torch.cat((rows, rows + before)) if self.guided else rows)
        shown = frames.repeat(2, 1) if self.guided else frames
        if self.codes:
            self.last = self.model.step(shown[..., None], self.cache)[:, 0]
        else:
            self.last = self.model.step_symbol(shown[:, 0], self.vocabulary, self.cache)[:, 0]
