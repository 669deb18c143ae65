"""Autoregressive decoding, with guidance and candidates in one batch: frames of codes, or written symbols.

The prompts are prefilled once (with text, and without it where guidance or ranking needs that), then shared between
candidates; rows that have stopped leave the batch.

Dimensions: R live rows, L levels, n codes per level, k frames a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vall_e.decoding import SamplingConfig
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import RowNoise, guide, sample

COMPACT_BELOW = 0.8  # share of live rows at which the batch is made smaller: copying a cache has a price too


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


def decode(
    model: VallE,
    prompts: Sequence[Sample],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    longest: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Candidate]]:
    """Decode ``sampling.candidates`` outputs for each prompt, whose tasks all have the same output vocabulary.

    Args:
        prompts: samples; a response that they hold already is a prefix to go on from.
        seeds: one per prompt; candidate c draws from its own stream, so results do not depend on the batch.
        longest: per prompt, the frames or symbols after which a row is cut off (``finished`` is then False).
        progress: called with (frames so far, live rows).

    Returns:
        per prompt its candidates in order.
    """
    with torch.inference_mode():
        return _Decoder(model, prompts, sampling, seeds, longest).run(progress)


class _Decoder:
    """The state of one batch."""

    def __init__(
        self,
        model: VallE,
        prompts: Sequence[Sample],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        longest: Sequence[int],
    ) -> None:
        self.vocabulary = prompts[0].vocabulary
        if any(p.vocabulary != self.vocabulary or p.mode != "ar" for p in prompts):
            raise ValueError("rows of one batch are all autoregressive and write in one vocabulary")
        self.model, self.sampling, self.steps = model, sampling, max(longest)
        layout = model.layout
        codes = self.vocabulary == "codes"
        self.stop, self.block = layout.stop(self.vocabulary), layout.block if codes else 1
        self.shown = layout.shown if codes else 1
        self.count, self.prompts = sampling.candidates, len(prompts)
        self.guided = any(len(p.text) for p in prompts) and (sampling.guidance > 0 or sampling.candidates > 1)
        rows, device = self.prompts * self.count, model.device
        packed = pack([*prompts, *(p.without_text() for p in prompts if self.guided)], layout).to(device)
        size = packed.symbol.shape[1] + self.steps + self.block
        cache = model.backbone.new_cache(len(packed.symbol), size, model.dtype, device)
        hidden = model.prefill(packed, cache, self.block)
        share = torch.arange(self.prompts, device=device).repeat_interleave(self.count)
        share = torch.cat((share, share + self.prompts)) if self.guided else share
        self.cache, self.last = cache.select(share), hidden[share]  # the states that the next block is drawn from
        streams = [(seed * 1_000_003 + c) % 2**63 for seed in seeds for c in range(self.count)]
        self.noise = RowNoise(streams, (self.shown, layout.size(self.vocabulary)), device)
        self.live = torch.arange(rows, device=device)  # decoded row → row of the results
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)  # of the rows still in the batch
        self.scores = torch.zeros(rows, device=device)
        self.frames = torch.zeros(rows, dtype=torch.int64, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.history = torch.full((rows, sampling.ar.repetition_window), -1, dtype=torch.int64, device=device)
        self.limits = torch.tensor(longest, device=device).repeat_interleave(self.count)
        self.out = torch.zeros(rows, self.shown, self.steps, dtype=torch.int64, device=device)

    def run(self, progress: Callable[[int, int], None] | None) -> list[list[Candidate]]:
        for first in range(0, self.steps, self.block):
            block = []
            for at in range(min(self.block, self.steps - first)):
                block.append(self._draw(at))
                self._keep(block[-1], first + at)
            going = ~self.done
            share = float(going.float().mean())
            if share == 0 or first + self.block >= self.steps:
                break
            codes = torch.stack(block, dim=-1)
            if share <= COMPACT_BELOW:
                codes = self._leave(going, codes)
            self.last = self._step(codes.repeat(2, 1, 1) if self.guided else codes)
            if progress is not None:
                progress(first + self.block, int(going.sum()))
        return self._collect()

    def _keep(self, codes: Tensor, frame: int) -> None:
        """Write down what was drawn for ``frame``, and who is done with it."""
        stopped = ~self.done & (codes[:, 0] == self.stop)
        self.finished[self.live[stopped]] = True
        going = ~self.done & ~stopped
        self.out[self.live[going], :, frame] = codes[going]
        self.frames[self.live[going]] += 1
        self.done = ~going | (self.limits[self.live] <= frame + 1)

    def _step(self, codes: Tensor) -> Tensor:
        """The block drawn, int64 [R, l, k], goes in → states [R, k, D]."""
        if self.vocabulary != "codes":
            return self.model.step_symbol(codes[:, 0, 0], self.vocabulary, self.cache)
        # What a stopped row shows until it leaves does not matter, as long as it is a code.
        return self.model.step(codes.clamp(max=self.stop - 1), self.cache)

    def _draw(self, at: int) -> Tensor:
        """Codes int64 [R, l] of the block's frame number ``at``; the stop symbol on level 0 ends a row."""
        sampling, rows = self.sampling, len(self.live)
        noise = self.noise.next()
        codes = self.vocabulary == "codes"
        heads = self.model.heads if codes else None
        states = heads.prepare(self.last[:, at]) if codes else self.last[:, at]
        logits = heads(states, 0, []) if codes else self.model.symbol_heads[self.vocabulary](states)
        log_p = logits.float().log_softmax(-1)
        conditioned, null = (log_p[:rows], log_p[rows:]) if self.guided else (log_p, None)
        guided = conditioned if null is None else guide(conditioned, null, sampling.guidance)
        history = self.history if sampling.ar.repetition_penalty != 1.0 else None
        settings = {"temperature": sampling.ar.temperature, "k": sampling.ar.top_k, "p": sampling.ar.top_p}
        code = sample(guided, noise[:, 0], **settings, penalty=sampling.ar.repetition_penalty, history=history)
        if null is not None:
            gain = (conditioned - null).gather(1, code[:, None])[:, 0]
            self.scores[self.live] += torch.where(self.done, 0.0, gain)
        self.history = torch.cat((self.history[:, 1:], code[:, None]), dim=1)
        drawn = [code]
        for level in range(1, self.shown):
            before = [c.clamp(max=self.stop - 1) for c in drawn]
            level_logits = heads(states[:rows], level, before).float()
            drawn.append(sample(level_logits, noise[:, level, : level_logits.shape[1]], **settings))
        return torch.stack(drawn, dim=1)

    def _leave(self, going: Tensor, codes: Tensor) -> Tensor:
        """Take the stopped rows out of the batch; returns the codes of those that stay."""
        index = going.nonzero()[:, 0]
        rows = len(self.live)
        self.cache = self.cache.select(torch.cat((index, index + rows)) if self.guided else index)
        self.noise.select(index)
        self.live, self.history, self.done = self.live[index], self.history[index], self.done[index]
        return codes[index]

    def _collect(self) -> list[list[Candidate]]:
        scores = (self.scores / self.frames.clamp(min=1)).tolist()
        frames, finished, out = self.frames.tolist(), self.finished.tolist(), self.out.cpu().numpy()
        rows = [Candidate(out[i][:, : frames[i]], finished[i], scores[i]) for i in range(len(out))]
        return [rows[i * self.count : (i + 1) * self.count] for i in range(self.prompts)]
