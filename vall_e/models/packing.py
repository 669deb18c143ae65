"""The layout of a sequence, in one place.

    | header | text: bos phones eos | PROMPT_START prompt frames | START output frames or symbols |

Which input segments a row has is its task's (``vall_e.tasks``). Every position carries a symbol id (phones, characters,
digits), a segment id and one code id per level; an id of 0 stands for "nothing here" and embeds to zero, so that the
sum of the tables is the input. The header carries task, language and tone. Rows are padded on the right: under a
causal mask padding changes nothing before it.

How an output is made is its ``mode``: ``ar`` left to right; ``level`` one codebook level in parallel, from those below;
``mask`` the masked codes in parallel. Parallel rows split at START: what is before it sees all of that but nothing
of the output, so its states serve every pass; the output sees everything.

Dimensions: B rows, T positions, L levels, n codes per level, k frames a step (``Layout.block``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from vall_e.family import KINDS, ModelConfig
from vall_e.nn.masks import Mask
from vall_e.tasks import AUDIO, NAMES, TASKS, VOCABULARIES, Vocabulary
from vall_e.text.tokenizer import BOS, EOS

IGNORE = -100
CHARS, DIGITS = 256, 10  # bytes; base-10 digits: the next id is each one's stop symbol

Mode = Literal["ar", "level", "mask"]
Codes = TypeVar("Codes", np.ndarray, Tensor)


class Place(IntEnum):
    """Segment ids; the response's level l > 0 has ``RESPONSE + l``."""

    PAD = 0
    HEADER = 1
    TEXT = 2
    CHARS = 3
    PROMPT_START = 4
    PROMPT = 5
    SOURCE_START = 6
    SOURCE = 7
    BEFORE_START = 8
    BEFORE = 9
    MIDDLE_START = 10
    MIDDLE = 11
    AFTER_START = 12
    AFTER = 13
    START = 14
    SYMBOL = 15
    MASKED = 16
    RESPONSE = 17


@dataclass(frozen=True)
class Sample:
    """One utterance for the model, in its own ids.

    Attributes:
        text: int64 [S] phone ids; empty for the null text of guidance.
        prompt: int64 [L, P] codes; P = 0 for no prompt.
        response: int64 [L, R] codes; R = 0 when decoding starts.
        level: of mode ``level``, above 0.
        corrupted: int64 [L, R], what the model sees of the response, n where a code is masked; None sees it as it is.
        spoken: int64 [2, R], the first and the last of the phones that may be spoken in each frame; None where nobody
            knows.
        mode: how the response is made.
        task: a row of ``tasks.TASKS``.
        symbols: int64 [R], the output of a task that writes; its vocabulary's ids.
        chars: int64 [C], raw text as bytes.
        more: codes int64 [L, N] of the task's other segments by name.
        language, tone: ids, 0 for none.
        asked: the one level that is to be predicted of a frame; None for all that the mode asks.
    """

    text: np.ndarray
    prompt: np.ndarray
    response: np.ndarray
    level: int = 0
    corrupted: np.ndarray | None = None
    spoken: np.ndarray | None = None
    mode: Mode = "ar"
    task: str = "tts"
    symbols: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    chars: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    more: Mapping[str, np.ndarray] = field(default_factory=dict)
    language: int = 0
    tone: int = 0
    asked: int | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the output."""
        return TASKS[self.task].output

    @property
    def answered(self) -> int:
        """Frames or symbols of the output."""
        return self.response.shape[1] if self.vocabulary == "codes" else len(self.symbols)

    @property
    def begun(self) -> np.ndarray:
        """Int64 [R], what is there of the output: its codes of level 0, or its symbols."""
        return self.response[0] if self.vocabulary == "codes" else self.symbols

    def codes(self, segment: str) -> np.ndarray:
        """Int64 [L, N] of an audio segment; N = 0 where the row has none."""
        return self.prompt if segment == "prompt" else self.more.get(segment, self.prompt[:, :0])

    def without_text(self) -> Sample:
        """The null row of guidance: neither what is to be said nor its language."""
        return replace(self, text=self.text[:0], spoken=None, language=0)


@dataclass(frozen=True)
class Layout:
    """Sizes of the id spaces. Code ids of a level: 0 nothing, 1..n prompt, n+1..2n response, 2n+1 mask.

    Symbol ids: the phones of the tokenizer (0 nothing), then bytes and their stop, then digits and their stop.
    """

    levels: int
    codes: int
    phones: int = 0
    frames: bool = True  # a causal row shows and draws all levels of a frame, not only level 0
    restart: bool = True  # rotary positions count anew in each segment
    block: int = 1  # k: frames that a causal row draws at once
    sum_prompt: bool = True  # a prompt frame shows all its levels, not only level 0
    sum_response: bool = True  # a row of mode level shows all levels below, not only the next one
    residual: bool = True  # later levels refine earlier ones (RVQ); False: they have no order (FSQ)

    @classmethod
    def of(cls, config: ModelConfig, levels: int, codes: int, phones: int, *, residual: bool = True) -> Layout:
        """The layout that a model of this configuration reads.

        Raises:
            ValueError: one level is to stand for all, and none of them is the coarsest.
        """
        if config.sum_levels != "both" and not residual:
            raise ValueError(
                f"model.sum_levels {config.sum_levels} lets one level stand for a frame, and of this codec's levels "
                "none is the coarsest (FSQ): take both"
            )
        return cls(
            levels, codes, phones, KINDS[config.kind].frames, config.positions == "segment", config.causal_size,
            config.sum_levels in ("both", "prompt"), config.sum_levels in ("both", "response"), residual,
        )  # fmt: skip

    @property
    def shown(self) -> int:
        """Levels of a response frame that a causal or masked row shows and draws."""
        return self.levels if self.frames else 1

    @property
    def code_ids(self) -> int:
        return 2 * self.codes + 2

    @property
    def symbol_ids(self) -> int:
        return self.first_symbol("digits") + DIGITS + 1

    @property
    def places(self) -> int:
        return Place.RESPONSE + self.levels

    def first_symbol(self, vocabulary: Vocabulary) -> int:
        """Where a vocabulary begins among the symbol ids."""
        return {"phones": 0, "chars": self.phones, "digits": self.phones + CHARS + 1}[vocabulary]

    def stop(self, vocabulary: Vocabulary) -> int:
        """The id, in its own vocabulary, after which an output ends."""
        return {"codes": self.codes, "phones": EOS, "chars": CHARS, "digits": DIGITS}[vocabulary]

    def size(self, vocabulary: Vocabulary) -> int:
        """Ids of a vocabulary, stop included."""
        return self.phones if vocabulary == "phones" else self.stop(vocabulary) + 1

    def response_ids(self, codes: Codes) -> Codes:
        """Response codes 0..n (n is the mask) as code ids."""
        return codes + self.codes + 1

    def output(self, mode: Mode, level: int) -> tuple[slice, int]:
        """The levels that a row shows of its output's frames, and the segment id of those."""
        if mode == "level":
            return slice(0 if self.sum_response else level - 1, level), Place.RESPONSE + level
        return slice(0, self.shown), Place.RESPONSE if mode == "ar" else Place.MASKED

    def length(self, sample: Sample) -> int:
        """Positions that a sample takes."""
        taken = 1 + sample.answered + (self.block if sample.vocabulary == "codes" and sample.mode == "ar" else 1)
        for segment in TASKS[sample.task].inputs:
            if segment == "text":
                taken += len(sample.text) + 2
            elif segment == "chars":
                taken += len(sample.chars)
            else:
                taken += 1 + sample.codes(segment).shape[1]
        return taken


@dataclass(frozen=True)
class Packed:
    """A batch of sequences.

    Attributes:
        symbol: int64 [B, T].
        segment: int64 [B, T], see ``Place``.
        code: int64 [B, L, T].
        header: int64 [B, 3], task, language and tone.
        target: int64 [B, L, T], the code to predict at a position, IGNORE where there is none; on level 0 of a
            causal row n stands for stop.
        written: int64 [B, T], the symbol to predict at a position, in the ids of the row's vocabulary.
        vocabulary: int64 [B], place in ``tasks.VOCABULARIES``.
        level: int64 [B].
        parallel: bool [B].
        masked: float32 [B], share of the codes that a row of mode ``mask`` does not see.
        position: int64 [B, T], rotary positions; 0 in padding, so that it does not make a row longer.
        lengths: int64 [B], slots in use.
        response: int64 [B], slot of the first START.
        spoken: int64 [B, 2, T], first and last text slot that may be spoken in the frame to predict at a position,
            the slot of eos for stop; IGNORE where there is none.
    """

    symbol: Tensor
    segment: Tensor
    code: Tensor
    header: Tensor
    target: Tensor
    written: Tensor
    vocabulary: Tensor
    level: Tensor
    parallel: Tensor
    masked: Tensor
    position: Tensor
    lengths: Tensor
    response: Tensor
    spoken: Tensor

    def to(self, device: torch.device | str) -> Packed:
        return Packed(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def mask(self) -> Mask | None:
        """Of a batch with parallel rows; None where all are causal."""
        return Mask(self.lengths, self.parallel, start=self.response + 1) if bool(self.parallel.any()) else None


def pack(samples: Sequence[Sample], layout: Layout, multiple: int = 1) -> Packed:
    """Samples as one padded batch, with targets for all that is to be predicted; T is a multiple of ``multiple``."""
    lengths = [layout.length(s) for s in samples]
    length = -(-max(lengths) // multiple) * multiple
    rows = [_Row(sample, layout, length) for sample in samples]

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows]))

    return Packed(
        stack("symbol"),
        stack("segment"),
        stack("code"),
        torch.tensor([[1 + NAMES.index(s.task), s.language, s.tone] for s in samples]),
        stack("target"),
        stack("written"),
        torch.tensor([VOCABULARIES.index(s.vocabulary) for s in samples]),
        torch.tensor([s.level for s in samples]),
        torch.tensor([s.mode != "ar" for s in samples]),
        torch.tensor([row.masked for row in rows], dtype=torch.float32),
        stack("position"),
        torch.tensor(lengths),
        torch.tensor([row.start for row in rows]),
        stack("spoken"),
    )


class _Row:
    """One row of a batch while it is laid out, slot after slot."""

    def __init__(self, sample: Sample, layout: Layout, length: int) -> None:
        self.sample, self.layout, self.at, self.start, self.masked = sample, layout, 0, 0, 0.0
        self.symbol, self.segment, self.written = (np.zeros(length, dtype=np.int64) for _ in range(3))
        self.code = np.zeros((layout.levels, length), dtype=np.int64)
        self.target = np.full((layout.levels, length), IGNORE, dtype=np.int64)
        self.spoken = np.full((2, length), IGNORE, dtype=np.int64)
        self.position = np.arange(length)
        self.written.fill(IGNORE)
        self.text_at = 0
        self._take(1, Place.HEADER)
        for segment in TASKS[sample.task].inputs:
            if segment == "text":
                self.text_at = self.at
                self.symbol[self._take(len(sample.text) + 2, Place.TEXT)] = (BOS, *sample.text, EOS)
            elif segment == "chars":
                self.symbol[self._take(len(sample.chars), Place.CHARS)] = sample.chars + layout.first_symbol("chars")
            else:
                self._audio(segment)
        self._restart()
        (self._codes if sample.vocabulary == "codes" else self._symbols)()
        if sample.asked is not None:
            self.target[np.arange(layout.levels) != sample.asked] = IGNORE
        self.position[self.at :] = 0

    def _take(self, count: int, place: int) -> slice:
        """The next ``count`` slots."""
        slots = slice(self.at, self.at + count)
        self.segment[slots] = place
        self.at += count
        return slots

    def _restart(self) -> None:
        if self.layout.restart:
            self.position[self.at :] = np.arange(len(self.position) - self.at)

    def _audio(self, segment: str) -> None:
        assert segment in AUDIO
        codes = self.sample.codes(segment)
        place = Place[segment.upper()]
        self._restart()
        self._take(1, place - 1)
        slots = self._take(codes.shape[1], place)
        shown = self.layout.levels if self.layout.sum_prompt else 1
        self.code[:shown, slots] = codes[:shown] + 1

    def _symbols(self) -> None:
        sample, layout = self.sample, self.layout
        self.start = self._take(1, Place.START).start
        slots = self._take(len(sample.symbols), Place.SYMBOL)
        self.symbol[slots] = sample.symbols + layout.first_symbol(sample.vocabulary)
        self.written[self.start : self.at] = (*sample.symbols, layout.stop(sample.vocabulary))

    def _codes(self) -> None:
        sample, layout = self.sample, self.layout
        seen = sample.response if sample.corrupted is None else sample.corrupted
        frames, shown = sample.response.shape[1], layout.shown
        first = self._take(layout.block if sample.mode == "ar" else 1, Place.START).start
        levels, place = layout.output(sample.mode, sample.level)
        slots = self._take(frames, place)
        self.start = first
        self.code[levels, slots] = layout.response_ids(seen[levels])
        if sample.mode == "ar":
            self.target[:shown, first : first + frames] = sample.response[:shown]
            self.target[0, first + frames] = layout.codes
            if sample.spoken is not None:
                self.spoken[:, first : first + frames] = sample.spoken + self.text_at + 1
                self.spoken[:, first + frames] = self.text_at + len(sample.text) + 1
            return
        if sample.mode == "level":
            self.target[sample.level, slots] = sample.response[sample.level]
            return
        if sample.spoken is not None:
            self.spoken[:, slots] = sample.spoken + self.text_at + 1
        hidden = seen[:shown] == layout.codes
        self.target[:shown, slots] = np.where(hidden, sample.response[:shown], IGNORE)
        self.masked = float(hidden.mean()) if frames else 0.0
