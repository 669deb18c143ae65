"""Parallel passes over outputs whose inputs stay the same: what is before an output is run once for all of them.

Rows of the modes ``mask`` and ``level`` split at START (see ``vall_e.models.packing``), so keys and values before it
are those of any pass: the first one leaves them to the others. Backbones that see both ways by a reversed run, or keep
something else than keys, run the whole row each time (``Capabilities.parallel_past``).

Dimensions: R rows, l levels, T frames of the longest output, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vall_e.models.packing import Mode, Packed, Place, Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.nn.past import Past


class ParallelPasses:
    """The rows of a batch of outputs.

    Args:
        model: of a kind with such rows.
        prompts: samples whose inputs to use.
        frames: of each output.
        copies: rows for each prompt, one behind the other; in the first pass they show the same codes.

    Attributes:
        real: bool [R, T], frames that are no padding.
    """

    def __init__(self, model: VallE, prompts: Sequence[Sample], frames: Sequence[int], copies: int = 1) -> None:
        self.model, device = model, model.device
        self.frames = torch.tensor(frames, device=device).repeat_interleave(copies)
        self.real = torch.arange(max(frames), device=device) < self.frames[:, None]
        rows = torch.arange(len(prompts), device=device)
        self._share = rows.repeat_interleave(copies)  # row → its prompt
        lora = model.config.lora
        per_level = lora is not None and lora.per_level  # then what is before an output depends on the level, too
        self._reuse = model.config.capabilities.parallel_past and not per_level
        self._past: Past | None = None
        self._packed = pack([_bare(p, n) for p, n in zip(prompts, frames, strict=True)], model.layout).to(device)
        self._whole_rows = rows * copies
        if not self._reuse:
            self._packed, self._whole_rows = _select(self._packed, self._share), torch.arange(len(self._share))

    def __call__(self, codes: Tensor, mode: Mode, level: int = 0) -> Tensor:
        """Codes int64 [R, l, T], n where they are masked → hidden states [R, T, D].

        Args:
            mode: ``mask``, or ``level`` for the pass that makes ``level`` from those below.
        """
        layout, real = self.model.layout, self.real
        shown, place = layout.output(mode, level)
        ids = codes.new_zeros(len(codes), layout.levels, codes.shape[2])
        ids[:, shown] = layout.response_ids(codes[:, shown]) * real[:, None]
        hidden = (codes[:, shown] == layout.codes) & real[:, None]
        masked = hidden.sum((1, 2)) / (self.frames * hidden.shape[1]).clamp(min=1) * (mode == "mask")
        segment, levels = torch.where(real, place, Place.PAD), torch.full_like(self.frames, level)
        if self._past is not None:
            return self.model.output(segment, ids, masked, levels, self.frames, self._past)
        out = self._in_one_piece(*(x[self._whole_rows] for x in (segment, ids, masked, levels, real)))
        return out[self._share] if self._reuse else out

    def _in_one_piece(self, segment: Tensor, ids: Tensor, masked: Tensor, levels: Tensor, real: Tensor) -> Tensor:
        packed, (row, frame) = self._packed, real.nonzero(as_tuple=True)
        slots = packed.response[:, None] + 1 + torch.arange(real.shape[1], device=ids.device)
        at = slots[row, frame]
        code, place = packed.code.clone(), packed.segment.clone()
        code[row, :, at], place[row, at] = ids[row, :, frame], segment[row, frame]
        past = Past(packed.response + 1, real.shape[1]) if self._reuse else None
        packed = replace(packed, code=code, segment=place, masked=masked, level=levels)
        hidden = self.model.hidden(packed, past)
        self._past = None if past is None else past.select(self._share)
        return hidden.take_along_dim(slots.clamp(max=hidden.shape[1] - 1)[..., None], dim=1)


def _bare(prompt: Sample, frames: int) -> Sample:
    """A parallel row with an output of ``frames`` frames, of which nothing is known."""
    blank = np.zeros((len(prompt.prompt), frames), dtype=np.int64)
    return replace(prompt, response=blank, corrupted=None, spoken=None, mode="mask", level=0, asked=None)


def _select(packed: Packed, rows: Tensor) -> Packed:
    return Packed(*(getattr(packed, name)[rows] for name in packed.__dataclass_fields__))
