"""From requests to the pieces that are spoken: cut to what the voice was trained on, each with its seed and duration.

Dimensions: L levels, P prompt frames, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vall_e.decoding import SamplingConfig
from vall_e.generation.chunks import Chunk, Mark, cut, cut_phones
from vall_e.generation.speech import Request, SpeechError

if TYPE_CHECKING:
    from vall_e.generation.loaded import LoadedVoice
    from vall_e.generation.segments import Spoken

COMMON = 0.7  # of the longest text of training: pieces of a longer one are of a size that was common there
ATTEMPTS = 1000  # seeds between those of two segments


@dataclass(frozen=True)
class Piece:
    """A segment that is to be spoken.

    Attributes:
        request: whose it is.
        chunk: what to say.
        before: phones that stand before it in the text, and
        prefix: int64 [L, T] the codes in which they were said.
        prompt: int64 [L, P] codes of the speaker.
        seed: of the first attempt.
        seconds: that its phones take on average, at the speed or within the duration that was asked for.
        timed: those seconds were asked for.
    """

    request: int
    chunk: Chunk
    before: tuple[str, ...]
    prefix: np.ndarray
    prompt: np.ndarray
    seed: int
    language: str
    seconds: float
    timed: bool


def plan(voice: LoadedVoice, index: int, request: Request, sampling: SamplingConfig) -> tuple[list[Piece], list[str]]:
    """Request number ``index`` in pieces, and warnings.

    Raises:
        SpeechError: nothing to say, a prompt without sound or text, or a duration too short for the pauses alone.
        UnknownPhoneError: the text has sounds that the model never saw.
    """
    prompt, warnings = np.zeros((voice.config.levels, 0), dtype=np.int64), []
    if request.prompt is not None:
        prompt, warnings = voice.prompt_codes(request.prompt)
    language = request.language or voice.config.language
    voice.language_id(language)
    before, prefix = (), prompt[:, :0]
    if request.continue_prompt:
        if not (request.prompt_text or "").strip() or request.prompt is None:
            raise SpeechError("continuing the reference needs its recording and its text (--ref-text)")
        before, prefix = (*voice.phones([request.prompt_text], language)[0], " "), prompt
    chunks = chunks_of(voice, request, sampling)
    for chunk in chunks:
        voice.ids((*before, *chunk.phones))  # an unknown sound is told before anything is spoken
    a_phone = voice.config.seconds_per_phone / request.speed
    if request.duration is not None:
        pauses = sum(pause_after(chunk.mark, sampling) for chunk in chunks[:-1])
        a_phone = (request.duration - pauses) / sum(len(chunk.phones) for chunk in chunks)
        if a_phone <= 0:
            raise SpeechError(f"a duration of {request.duration} s is no more than the pauses alone: {pauses:.2f} s")
    timed = request.duration is not None or request.speed != 1
    pieces = []
    for at, chunk in enumerate(chunks):
        seed, seconds = reseed(request.seed, ATTEMPTS * at), len(chunk.phones) * a_phone
        pieces.append(Piece(index, chunk, before, prefix, prompt, seed, language, seconds, timed))
    return pieces, warnings


def chunks_of(voice: LoadedVoice, request: Request, sampling: SamplingConfig) -> list[Chunk]:
    """The segments in which a request is spoken; with rolling context there is room for it in what was trained on.

    Raises:
        SpeechError: nothing to say.
    """
    language = request.language or voice.config.language
    longest = voice.config.longest_text
    found = _cut(voice, request, language, longest)
    if len(found) > 1:
        common = max(1, int(COMMON * longest))
        if sampling.long_text.context == "rolling":
            context = round(sampling.long_text.context_seconds / voice.config.seconds_per_phone)
            common = max(-(-common // 2), common - context)
        found = _cut(voice, request, language, common)
    if not found:
        raise SpeechError(f"nothing to say in {request.text!r}: give some words")
    return found


def _cut(voice: LoadedVoice, request: Request, language: str, longest: int) -> list[Chunk]:
    if request.phones is not None:
        return cut_phones(request.phones, longest)
    return cut(request.text, longest, lambda texts: voice.phones(texts, language))


def pause_after(mark: Mark, sampling: SamplingConfig) -> float:
    """Seconds of silence between a segment that ends with ``mark`` and the next."""
    long_text = sampling.long_text
    pauses = {
        Mark.CLAUSE: long_text.clause_pause,
        Mark.SENTENCE: long_text.sentence_pause,
        Mark.PARAGRAPH: long_text.paragraph_pause,
    }
    return pauses.get(mark, 0.0)


def going_on(piece: Piece, heard: Sequence[Spoken]) -> Piece:
    """The piece with the end of the segment before as its beginning, where that was said well."""
    if not heard or heard[-1].faults or heard[-1].tail is None:
        return piece
    phones, codes = heard[-1].tail
    return replace(piece, before=(*phones, " "), prefix=codes)


def reseed(seed: int, times: int) -> int:
    """Another seed, as far from those of other requests as can be; ``times`` 0 is the seed itself."""
    return (seed + times * 0x9E3779B97F4A7C15) % 2**63
