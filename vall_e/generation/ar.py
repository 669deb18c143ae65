"""Autoregressive decoding of response frames, with guidance and candidates in one batch.

The prompts are prefilled once (with text, and without it where guidance or ranking needs that), then shared between
candidates; rows that have stopped leave the batch. Dimensions: R live rows, L levels, n codes per level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vall_e.config import SamplingConfig
from vall_e.models.heads import DepthHead
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import RowNoise, guide, sample

COMPACT_BELOW = 0.8  # share of live rows at which the batch is made smaller: copying a cache has a price too


@dataclass(frozen=True)
class Candidate:
    """One decoded row.

    Attributes:
        codes: int64 [l, T], l levels shown by a causal row.
        finished: it stopped by itself.
        score: mean over frames of log p(code | text) - log p(code | no text), in nats; the codes of level 0.
        alignment: see ``vall_e.generation.alignment``; 0 for a model without that head.
    """

    codes: np.ndarray
    finished: bool
    score: float
    alignment: float = 0.0


def decode_frames(
    model: VallE,
    prompts: Sequence[Sample],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    max_frames: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Candidate]]:
    """Decode ``sampling.candidates`` responses for each prompt.

    Args:
        prompts: samples; a response that they hold already is a prefix to go on from.
        seeds: one per prompt; candidate c draws from its own stream, so results do not depend on the batch.
        max_frames: per prompt, the frames after which a row is cut off (``finished`` is then False).
        progress: called with (frames so far, live rows).

    Returns:
        per prompt its candidates in order.
    """
    with torch.inference_mode():
        return _Decoder(model, prompts, sampling, seeds, max_frames).run(progress)


class _Decoder:
    """The state of one batch."""

    def __init__(
        self,
        model: VallE,
        prompts: Sequence[Sample],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        max_frames: Sequence[int],
    ) -> None:
        self.model, self.sampling, self.steps = model, sampling, max(max_frames)
        self.count, self.prompts = sampling.candidates, len(prompts)
        self.guided = sampling.guidance > 0 or sampling.candidates > 1
        rows = self.prompts * self.count
        null = [Sample(np.zeros(0, dtype=np.int64), p.prompt, p.response) for p in prompts] if self.guided else []
        packed = pack([*prompts, *null], model.layout).to(model.device)
        longest = packed.text.shape[1]
        cache = model.backbone.new_cache(len(packed.text), longest + self.steps, model.dtype, model.device)
        last = model.prefill(packed, cache)
        share = torch.arange(self.prompts, device=model.device).repeat_interleave(self.count)
        share = torch.cat((share, share + self.prompts)) if self.guided else share
        self.cache, self.last = cache.select(share), last[share]
        streams = [(seed * 1_000_003 + c) % 2**63 for seed in seeds for c in range(self.count)]
        layout = model.layout
        self.noise = RowNoise(streams, (layout.shown, layout.codes + 1), model.device)
        self.live = torch.arange(rows, device=model.device)  # decoded row → row of the results
        self.done = torch.zeros(rows, dtype=torch.bool, device=model.device)  # of the rows still in the batch
        self.scores = torch.zeros(rows, device=model.device)
        self.frames = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=model.device)
        self.history = torch.full((rows, sampling.repetition_window), -1, dtype=torch.int64, device=model.device)
        self.limits = torch.tensor(max_frames, device=model.device).repeat_interleave(self.count)
        self.out = torch.zeros(rows, layout.shown, self.steps, dtype=torch.int64, device=model.device)

    def run(self, progress: Callable[[int, int], None] | None) -> list[list[Candidate]]:
        stop = self.model.layout.codes
        for frame in range(self.steps):
            codes = self._draw()
            stopped = ~self.done & (codes[:, 0] == stop)
            self.finished[self.live[stopped]] = True
            going = ~self.done & ~stopped
            self.out[self.live[going], :, frame] = codes[going]
            self.frames[self.live[going]] += 1
            self.done = ~going | (self.limits[self.live] <= frame + 1)
            going = ~self.done
            share = float(going.float().mean())
            if share == 0 or frame + 1 == self.steps:
                break
            if share <= COMPACT_BELOW:
                codes = self._leave(going, codes)
            codes = codes.clamp(max=stop - 1)  # what a stopped row shows until it leaves does not matter
            self.last = self.model.step((codes.repeat(2, 1) if self.guided else codes)[..., None], self.cache)
            if progress is not None:
                progress(frame + 1, int(going.sum()))
        return self._collect()

    def _draw(self) -> Tensor:
        """Codes int64 [R, l] of the next frame; n on level 0 is stop."""
        heads, sampling, rows = self.model.heads, self.sampling, len(self.live)
        noise = self.noise.next()
        depth = isinstance(heads, DepthHead)
        logits = heads(self.last, 0, []) if depth else heads(self.last, 0)
        log_p = logits.float().log_softmax(-1)
        conditioned, null = (log_p[:rows], log_p[rows:]) if self.guided else (log_p, None)
        guided = conditioned if null is None else guide(conditioned, null, sampling.guidance)
        history = self.history if sampling.repetition_penalty != 1.0 else None
        settings = {"temperature": sampling.temperature, "k": sampling.top_k, "p": sampling.top_p}
        code = sample(guided, noise[:, 0], **settings, penalty=sampling.repetition_penalty, history=history)
        if null is not None:
            gain = (conditioned - null).gather(1, code[:, None])[:, 0]
            self.scores[self.live] += torch.where(self.done, 0.0, gain)
        self.history = torch.cat((self.history[:, 1:], code[:, None]), dim=1)
        drawn = [code]
        if depth:
            for level in range(1, self.model.layout.levels):
                before = [c.clamp(max=self.model.layout.codes - 1) for c in drawn]
                level_logits = heads(self.last[:rows], level, before).float()
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
