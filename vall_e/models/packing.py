"""The layout of a sequence, in one place.

    | text: bos phones eos | PROMPT_START prompt frames | RESPONSE_START response frames |

Every position carries a text id, a segment id and one code id per level; an id of 0 stands for "nothing here" and
embeds to zero, so that the sum of the tables is the input. Rows are padded on the right: under a causal mask padding
changes nothing before it.

Dimensions: B rows, T positions, L levels, n codes per level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vall_e.family import ModelConfig
from vall_e.nn.masks import Mask
from vall_e.text.tokenizer import BOS, EOS

PAD, TEXT, PROMPT_START, PROMPT, RESPONSE_START, RESPONSE = range(6)
IGNORE = -100


@dataclass(frozen=True)
class Sample:
    """One utterance for the model, in its own ids.

    Attributes:
        text: int64 [S] phone ids; empty for the null text of guidance.
        prompt: int64 [L, P] codes; P = 0 for no prompt.
        response: int64 [L, R] codes; R = 0 when decoding starts.
        level: 0 for the autoregressive pass, l > 0 for the parallel pass of level l.
        corrupted: int64 [L, R], what the model sees of the response, n where a frame is masked; None sees it as it is.
        spoken: int64 [2, R], the first and the last of the phones that may be spoken in each frame; None where nobody
            knows.
    """

    text: np.ndarray
    prompt: np.ndarray
    response: np.ndarray
    level: int = 0
    corrupted: np.ndarray | None = None
    spoken: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Positions that it takes."""
        return len(self.text) + 4 + self.prompt.shape[1] + self.response.shape[1]


@dataclass(frozen=True)
class Layout:
    """Sizes of the id spaces. Code ids of a level: 0 nothing, 1..n prompt, n+1..2n response, 2n+1 mask."""

    levels: int
    codes: int
    depth: bool = True  # a causal row shows all levels of a frame, not only level 0
    restart: bool = True  # rotary positions count anew in each segment

    @classmethod
    def of(cls, config: ModelConfig, levels: int, codes: int) -> Layout:
        """The layout that a model of this configuration reads."""
        return cls(levels, codes, config.kind == "ar-depth", config.positions == "segment")

    @property
    def shown(self) -> int:
        """Levels of a response frame that a causal row shows and draws."""
        return self.levels if self.depth else 1

    @property
    def code_ids(self) -> int:
        return 2 * self.codes + 2

    @property
    def segments(self) -> int:
        return RESPONSE + self.levels

    def response_ids(self, codes: np.ndarray) -> np.ndarray:
        """Response codes 0..n (n is the mask) as code ids."""
        return codes + self.codes + 1


@dataclass(frozen=True)
class Packed:
    """A batch of sequences.

    Attributes:
        text: int64 [B, T].
        segment: int64 [B, T].
        code: int64 [B, L, T].
        target: int64 [B, L, T], the code to predict at a position, IGNORE where there is none; on level 0 of a
            causal row n stands for stop.
        level: int64 [B].
        position: int64 [B, T], rotary positions; 0 in padding, so that it does not make a row longer.
        lengths: int64 [B], slots in use.
        response: int64 [B], slot of RESPONSE_START.
        spoken: int64 [B, 2, T], first and last text slot that may be spoken in the frame to predict at a position,
            the slot of eos for stop; IGNORE where there is none.
    """

    text: Tensor
    segment: Tensor
    code: Tensor
    target: Tensor
    level: Tensor
    position: Tensor
    lengths: Tensor
    response: Tensor
    spoken: Tensor

    def to(self, device: torch.device | str) -> Packed:
        return Packed(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def mask(self) -> Mask | None:
        """Of a batch with parallel rows, which see all of their own row; None where all are causal."""
        parallel = self.level > 0
        return Mask(self.lengths, parallel) if bool(parallel.any()) else None


def pack(samples: Sequence[Sample], layout: Layout, multiple: int = 1) -> Packed:
    """Samples as one padded batch, with targets for all that is to be predicted; T is a multiple of ``multiple``."""
    rows, levels = len(samples), layout.levels
    length = -(-max(s.length for s in samples) // multiple) * multiple
    text = np.zeros((rows, length), dtype=np.int64)
    segment = np.zeros((rows, length), dtype=np.int64)
    code = np.zeros((rows, levels, length), dtype=np.int64)
    target = np.full((rows, levels, length), IGNORE, dtype=np.int64)
    aligned = np.full((rows, 2, length), IGNORE, dtype=np.int64)
    position = np.tile(np.arange(length), (rows, 1))
    start = np.zeros(rows, dtype=np.int64)
    for i, sample in enumerate(samples):
        spoken, prompted, answered = len(sample.text), sample.prompt.shape[1], sample.response.shape[1]
        text[i, : spoken + 2] = (BOS, *sample.text, EOS)
        segment[i, : spoken + 2] = TEXT
        at = spoken + 2
        if layout.restart:
            position[i, at:] -= at
        segment[i, at] = PROMPT_START
        segment[i, at + 1 : at + 1 + prompted] = PROMPT
        code[i, :, at + 1 : at + 1 + prompted] = sample.prompt + 1
        at += 1 + prompted
        if layout.restart:
            position[i, at:] -= 1 + prompted
        start[i] = at
        end = at + 1 + answered
        position[i, end:] = 0
        segment[i, at] = RESPONSE_START if sample.level == 0 else RESPONSE + sample.level
        segment[i, at + 1 : end] = RESPONSE + sample.level
        seen = sample.response if sample.corrupted is None else sample.corrupted
        if sample.level == 0:
            shown = layout.shown
            code[i, :shown, at + 1 : end] = layout.response_ids(seen[:shown])
            target[i, :shown, at : end - 1] = sample.response[:shown]
            target[i, 0, end - 1] = layout.codes
            if sample.spoken is not None:
                aligned[i, :, at : end - 1] = sample.spoken + 1
                aligned[i, :, end - 1] = spoken + 1
        else:
            code[i, : sample.level, at + 1 : end] = layout.response_ids(seen[: sample.level])
            target[i, sample.level, at + 1 : end] = sample.response[sample.level]
    return Packed(
        *(torch.from_numpy(a) for a in (text, segment, code, target)),
        torch.tensor([s.level for s in samples]),
        torch.from_numpy(position),
        torch.tensor([s.length for s in samples]),
        torch.from_numpy(start),
        torch.from_numpy(aligned),
    )
