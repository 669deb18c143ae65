"""The tasks, a row each: what goes in, what comes out. A leaf.

Packing, masks, loss, the choice of heads and decoding read this table, so a task cannot be half there: a new one is a
row here and a maker of samples in ``vall_e.data.makers``. Names and sequences after VALL-E (2301.02111), VALL-E X
(2303.03926) and SpeechX (2308.06873, table 1).

A sequence is a header (task, language, tone), the input segments in order, a separator, and the output:

    | header | input segments ... | START | output |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Vocabulary = Literal["codes", "phones", "chars", "digits"]
Mixed = Literal["noise", "overlap"]
Segment = Literal["text", "chars", "prompt", "source", "before", "middle", "after"]

SYMBOLS: tuple[Vocabulary, ...] = ("phones", "chars", "digits")  # outputs that are one symbol a step
VOCABULARIES: tuple[Vocabulary, ...] = ("codes", *SYMBOLS)  # a batch names each row's by its place here
AUDIO: tuple[Segment, ...] = ("prompt", "source", "before", "middle", "after")  # segments of codes


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes:
        inputs: segments in their order. ``text`` are phones, ``chars`` raw text, the others are codes.
        output: what is said or written; it decides the head, and its last entry is the stop symbol.
        optional: inputs that may be missing.
        mixture: what the utterance is mixed with in its samples (encode.mixtures): noise, or another voice at once.
        continues: the prompt is the beginning of the output, and the text holds its transcript.
        parallel: the output can also be made by parallel passes (codes); the others are autoregressive only.
    """

    inputs: tuple[Segment, ...]
    output: Vocabulary = "codes"
    optional: tuple[Segment, ...] = ()
    mixture: Mixed | None = None
    continues: bool = False

    @property
    def parallel(self) -> bool:
        return self.output == "codes"

    @property
    def needs_prompt(self) -> bool:
        """Whether nothing can be made for a speaker of whom there is nothing else."""
        return "prompt" in self.inputs and "prompt" not in self.optional


TASKS: dict[str, Task] = {
    "tts": Task(("text", "prompt"), optional=("text", "prompt")),
    "tts-c": Task(("text",), continues=True),
    "stt": Task(("source",), "phones"),
    "phn": Task(("chars",), "phones"),
    "un-phn": Task(("text",), "chars"),
    "len": Task(("text", "prompt"), "digits", optional=("prompt",)),
    "ns": Task(("text", "source"), optional=("text",), mixture="noise"),
    "sr": Task(("text", "source"), optional=("text",), mixture="noise"),
    "tse": Task(("text", "prompt", "source"), optional=("text",), mixture="overlap"),
    "cse": Task(("text", "before", "middle", "after"), optional=("before", "middle", "after")),
    "nse": Task(("text", "before", "middle", "after"), optional=("before", "middle", "after"), mixture="noise"),
    "vc": Task(("prompt",)),
}
NAMES = tuple(TASKS)
