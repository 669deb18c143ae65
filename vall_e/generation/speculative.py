"""Self-speculative decoding (LayerSkip, 2404.16710, section 4.3): the first layers draft frames, all layers check them.

A round drafts some frames one after the other from the early exit, runs all of them through all layers at once, and
keeps those that the whole model would have drawn; what it draws instead of the first other one is kept as well.
Greedy results are those of plain decoding, drawn ones have its distribution. Dimensions: R rows, D width, L levels,
n codes per level, l levels shown by a causal row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vall_e.decoding import SamplingConfig
from vall_e.generation.ar import Candidate
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import RowNoise, draw, warp
from vall_e.sampling.speculate import verify


def speculate(
    model: VallE,
    prompts: Sequence[Sample],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    longest: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Candidate]]:
    """As ``decode``, by the rules of ``sampling.speculation``; ``progress`` is called once a round.

    Raises:
        ValueError: the backbone cannot exit early, go back or take several frames at once, or has too few layers.
    """
    can = model.backbone.capabilities
    if not (can.early_exit and can.rewind and can.multi_token):
        raise ValueError(f"sampling.speculation: the backbone {model.config.backbone} cannot draft and take back")
    if sampling.speculation.exit_layer > model.config.layers:
        raise ValueError(f"sampling.speculation.exit_layer: the model has only {model.config.layers} layers")
    if model.layout.block > 1 or any(p.vocabulary != "codes" for p in prompts):
        raise ValueError("sampling.speculation drafts single frames of codes: causal_size 1, and no task that writes")
    with torch.inference_mode():
        return _Speculator(model, prompts, sampling, seeds, longest).run(progress)


@dataclass(frozen=True)
class _Draft:
    """A frame from the early exit: codes int64 [R, l], and per level the logits [R, V] that each was drawn from."""

    codes: Tensor
    logits: list[Tensor]


class _Speculator:
    """The state of one batch. The last frame of each row is drawn, but not yet in the cache."""

    def __init__(
        self,
        model: VallE,
        prompts: Sequence[Sample],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        longest: Sequence[int],
    ) -> None:
        self.model, self.rules, steps = model, sampling.speculation, max(longest)
        self.settings = {"temperature": sampling.ar.temperature, "k": sampling.ar.top_k, "p": sampling.ar.top_p}
        packed = pack(prompts, model.layout).to(model.device)
        rows, size = len(prompts), packed.symbol.shape[1] + steps + self.rules.draft + 1
        self.cache = model.backbone.new_cache(rows, size, model.dtype, model.device)
        hidden = model.prefill(packed, self.cache)[:, 0]
        shown, codes = model.layout.shown, model.layout.codes
        self.noise = RowNoise([seed * 1_000_003 % 2**63 for seed in seeds], (shown, codes + 2), model.device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=model.device)
        self.finished, self.frames = self.done.clone(), self.cache.lengths.new_zeros(rows)
        self.limits = torch.tensor(longest, device=model.device)
        self.out = self.frames.new_zeros(rows, shown, steps)
        self.last = self._draft(hidden).codes
        self._emit(self.last, ~self.done)

    def run(self, progress: Callable[[int, int], None] | None) -> list[list[Candidate]]:
        while not bool(self.done.all()):
            self._round()
            if progress is not None:
                progress(int(self.frames.max()), int((~self.done).sum()))
        frames, finished, out = self.frames.tolist(), self.finished.tolist(), self.out.cpu().numpy()
        return [[Candidate(out[i][:, : frames[i]], finished[i], 0.0)] for i in range(len(out))]

    def _round(self) -> None:
        before = self.cache.lengths
        drafts, shown = [], [self.last]
        for _ in range(self.rules.draft):
            drafts.append(self._draft(self._extend(shown[-1:], self.rules.exit_layer)[:, 0]))
            shown.append(drafts[-1].codes)
        self.cache.rewind(before)
        hidden = self._extend(shown)
        going, kept = ~self.done, torch.zeros_like(before)
        for at in range(len(shown)):
            if at < len(drafts):
                codes, same = self._check(hidden[:, at], drafts[at])
            else:
                codes, same = self._draft(hidden[:, at]).codes, torch.zeros_like(going)
            self._emit(codes, going)
            self.last = codes.where(going[:, None], self.last)
            kept, going = kept + going, going & same & ~self.done
        self.cache.rewind(before + kept)

    def _extend(self, frames: Sequence[Tensor], layers: int | None = None) -> Tensor:
        """Hidden states [R, T, D] behind T frames int64 [R, l]; what a stopped row shows does not matter."""
        codes = torch.stack(list(frames), dim=-1).clamp(max=self.model.layout.codes - 1)
        return self.model.step(codes, self.cache, layers)

    def _logits(self, states: Tensor, drawn: list[Tensor]) -> Tensor:
        """Of the level behind those in ``drawn``, with all but what may be drawn at -inf."""
        logits = self.model.heads(states, len(drawn), [c.clamp(max=self.model.layout.codes - 1) for c in drawn])
        return warp(logits.float(), **self.settings)

    def _draft(self, hidden: Tensor) -> _Draft:
        """A frame drawn from ``hidden`` [R, D], level after level."""
        noise, codes, logits = self.noise.next(), [], []
        states = self.model.heads.prepare(hidden)
        for level in range(self.model.layout.shown):
            logits.append(self._logits(states, codes))
            codes.append(draw(logits[-1], noise[:, level, : logits[-1].shape[1]]))
        return _Draft(torch.stack(codes, dim=1), logits)

    def _check(self, hidden: Tensor, draft: _Draft) -> tuple[Tensor, Tensor]:
        """A frame int64 [R, l] of the whole model, and bool [R], where it is the drafted one.

        Levels are checked one after the other: the first that is refused is replaced, and those behind it are drawn
        anew from the whole model."""
        noise, codes = self.noise.next(), []
        states = self.model.heads.prepare(hidden)
        same = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
        for level in range(self.model.layout.shown):
            target = self._logits(states, codes)
            part = noise[:, level, -target.shape[1] - 1 :]
            code, kept = verify(draft.codes[:, level], draft.logits[level], target, part)
            codes.append(code.where(same, draw(target, part[:, :-1])))
            same = same & kept
        return torch.stack(codes, dim=1), same

    def _emit(self, codes: Tensor, rows: Tensor) -> None:
        """Add a frame to the results of the rows bool [R]."""
        stopped = rows & (codes[:, 0] == self.model.layout.codes)
        self.finished |= stopped
        index = (rows & ~stopped).nonzero()[:, 0]
        self.out[index, :, self.frames[index]] = codes[index]
        self.frames[index] += 1
        self.done |= rows & (stopped | (self.frames >= self.limits))
