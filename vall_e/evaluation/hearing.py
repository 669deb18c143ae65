"""What a recogniser heard: words with their times, pieces of speech, and a whole clip.

Times are seconds from the start of the clip that was given.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

# Whisper's own thresholds (2212.04356, section 4.5).
NO_SPEECH, LOG_PROB, COMPRESSION = 0.6, -1.0, 2.4
_SHORTEST_LOOP = 24


def compression_ratio(text: str) -> float:
    """Bytes of ``text`` over those of its zlib form: loops compress well. 0 for no text."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0


@dataclass(frozen=True)
class Word:
    """A word as the recogniser wrote it, ``score`` its probability, 0..1."""

    text: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Hypothesis:
    """A decoded text and what the decoder says of it.

    ``score`` is CTranslate2's (summed log-probability, the end's included, over the number of tokens without the end);
    ``finished`` is false where the length cap ended the text.
    """

    text: str
    score: float
    no_speech: float
    finished: bool
    tokens: tuple[int, ...] = ()

    @property
    def log_prob(self) -> float:
        """Mean log-probability of a token, the end's included, as Whisper's threshold means it."""
        count = len(self.tokens)
        return self.score * count / (count + 1)

    @property
    def runaway(self) -> bool:
        """A loop, or a text cut off by the length cap."""
        looped = len(self.text.encode()) > _SHORTEST_LOOP and compression_ratio(self.text) > COMPRESSION
        return not self.finished or looped

    @property
    def doubtful(self) -> bool:
        """A runaway or a guess."""
        return self.runaway or self.score < LOG_PROB

    @property
    def rank(self) -> tuple[bool, float]:
        """The better of two hypotheses has the higher one."""
        return not self.runaway, self.score

    @property
    def spoken(self) -> str:
        """The text, or nothing where Whisper takes the clip for silence."""
        return "" if self.no_speech > NO_SPEECH and self.score < LOG_PROB else self.text


@dataclass(frozen=True)
class Piece:
    """A stretch of speech within a clip. ``words`` is None where their times were not asked for."""

    start: float
    end: float
    heard: Hypothesis
    words: tuple[Word, ...] | None = None


@dataclass
class Hearing:
    """What was heard in a clip: its pieces in order.

    ``language`` is Whisper's code and ``language_probability`` None where it was given and not detected; ``error``
    says why the recogniser failed on a piece.
    """

    language: str
    language_probability: float | None = None
    pieces: list[Piece] = field(default_factory=list)
    error: str | None = None

    @property
    def text(self) -> str:
        return " ".join(piece.heard.spoken for piece in self.pieces if piece.heard.spoken)
