"""From requests to the pieces that are spoken: cut to what the voice was trained on, each with its seed and duration.

Dimensions: L levels, P prompt frames, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vall_e.decoding import SamplingConfig
from vall_e.generation import tempo
from vall_e.generation.alignment import read_along
from vall_e.generation.chunks import Chunk, Mark, cut, cut_phones
from vall_e.generation.respond import begins_masked
from vall_e.generation.sounds import known_ids
from vall_e.generation.speech import FASTEST, SLOWEST, Request, SpeechError
from vall_e.models.packing import Sample

if TYPE_CHECKING:
    from vall_e.generation.loaded import LoadedVoice
    from vall_e.generation.segments import Spoken

COMMON = 0.7  # of the longest text of training: pieces of a longer one are of a size that was common there
ATTEMPTS = 1000  # seeds between those of two segments
OF_REFERENCE = "the reference's text: "
DENSEST = 3.0  # phones in a recording, over what there are in so many seconds on average


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
        seconds: that its phones take on average, as they are drawn.
        timed: it is drawn to last those seconds, its share of a duration that was asked for.
        speed: how much faster than by itself the voice is to draw it.
        held_at: the speed at which the prefix was drawn.
        tempo: how much faster than it was drawn it is to be heard; None for what a duration turns out to take.
    """

    request: int
    chunk: Chunk
    before: tuple[str, ...]
    prefix: np.ndarray
    prompt: np.ndarray
    seed: int
    language: str
    seconds: float
    timed: bool = False
    speed: float = 1.0
    held_at: float = 1.0
    tempo: float | None = 1.0


def plan(voice: LoadedVoice, index: int, request: Request, sampling: SamplingConfig) -> tuple[list[Piece], list[str]]:
    """Request number ``index`` in pieces, and warnings.

    What begins from masks is drawn at the speed, or as long as, a request asks. What goes left to right is drawn at the
    voice's own pace, for it ends by itself: its sound is then stretched in time.

    Raises:
        SpeechError: nothing to say, a prompt without sound or text, or a duration or speed that cannot be.
        UnknownPhoneError: the text has sounds that the model never saw; names the words.
    """
    language = request.language or voice.config.language
    voice.language_id(language)
    prompt, warnings = np.zeros((voice.config.levels, 0), dtype=np.int64), []
    before, prefix = (), prompt
    if request.continue_prompt:
        before, prompt, warnings = _beginning(voice, request, language)
        prefix = prompt
    elif request.prompt is not None:
        prompt, warnings = voice.prompt_codes(request.prompt)
    masked = begins_masked(voice.model, sampling)
    if not masked and not tempo.SLOWEST <= request.speed <= tempo.FASTEST:
        raise SpeechError(
            f"a voice of kind {voice.config.model.kind} speaks left to right, and its sound is stretched by a speed "
            f"between {tempo.SLOWEST:g} and {tempo.FASTEST:g}, not {request.speed:g}"
        )
    chunks, speed = _at_speed(voice, request, sampling, masked)
    _check_sounds(voice, request, chunks, language)  # an unknown sound is told before anything is spoken
    a_phone = voice.config.seconds_per_phone / (speed if masked else 1.0)
    how = {"timed": request.duration is not None, "speed": speed} if masked else {
        "tempo": speed if request.duration is None else None}  # fmt: skip
    pieces = []
    for at, chunk in enumerate(chunks):
        seed, seconds = reseed(request.seed, ATTEMPTS * at), len(chunk.phones) * a_phone
        pieces.append(Piece(index, chunk, before, prefix, prompt, seed, language, seconds, **how))
    return pieces, warnings


def _check_sounds(voice: LoadedVoice, request: Request, chunks: Sequence[Chunk], language: str) -> None:
    """Raises UnknownPhoneError as ``known_ids`` does, with the segment where there are several."""
    before = Mark.WORD
    for number, chunk in enumerate(chunks, 1):
        cut_inside, before = Mark.PHONE in (before, chunk.mark), chunk.mark
        text = request.text if cut_inside else chunk.text  # half a word is read otherwise than the word
        where = f"segment {number} ({chunk.text!r}): " if len(chunks) > 1 else ""
        known_ids(voice, chunk.phones, "" if request.phones is not None else text, language, where)


def _at_speed(
    voice: LoadedVoice, request: Request, sampling: SamplingConfig, masked: bool
) -> tuple[list[Chunk], float]:
    """The segments of a request, and the speed that it asks for: itself, or by the duration on average."""
    chunks = chunks_of(voice, request, sampling, request.speed if masked else 1.0)
    if request.duration is None:
        return chunks, request.speed
    said, pauses = _takes(voice, chunks, sampling)
    _check_duration(request.duration, said, pauses)
    if masked and said < request.duration - pauses:
        slower = chunks_of(voice, request, sampling, said / (request.duration - pauses))
        takes = _takes(voice, slower, sampling)
        if takes[1] + takes[0] / FASTEST <= request.duration:  # there is time for the pauses of more segments
            chunks, (said, pauses) = slower, takes
    return chunks, said / (request.duration - pauses)


def _takes(voice: LoadedVoice, chunks: Sequence[Chunk], sampling: SamplingConfig) -> tuple[float, float]:
    """Seconds that ``chunks`` take to say on average, and those of the pauses between them."""
    phones = sum(len(chunk.phones) for chunk in chunks)
    return phones * voice.config.seconds_per_phone, sum(pause_after(chunk.mark, sampling) for chunk in chunks[:-1])


def _check_duration(duration: float, said: float, pauses: float) -> None:
    """Raises SpeechError where what takes ``said`` seconds cannot last ``duration`` with its pauses, at any speed.

    A few phones may last a second more."""
    least, most = pauses + said / FASTEST, pauses + 1.0 + said / SLOWEST
    if not least <= duration <= most:
        raise SpeechError(
            f"a duration of {duration:g} s cannot be: this text takes {said + pauses:.2f} s on average, "
            f"{pauses:.2f} s of them pauses alone; give {least:.2f} to {most:.2f} s"
        )


def _beginning(voice: LoadedVoice, request: Request, language: str) -> tuple[tuple[str, ...], np.ndarray, list[str]]:
    """Phones of a reference that is to be gone on from, its codes int64 [L, P], and warnings.

    Of one that is longer than prompts were in training, the words that end within that length.

    Raises:
        SpeechError: no recording, no text, or nobody knows which words to leave out.
    """
    said = (request.prompt_text or "").strip()
    if not said or request.prompt is None:
        raise SpeechError("continuing the reference needs its recording and its text (--ref-text)")
    codes, warnings = voice.whole_prompt(request.prompt)
    if codes.shape[1] > voice.longest_prompt:
        said, codes, warning = _first_words(voice, said, codes, language)
        warnings.append(warning)
    phones = voice.phones([said], language)[0]
    known_ids(voice, phones, said, language, OF_REFERENCE)
    return (*phones, " "), codes, warnings


def _first_words(voice: LoadedVoice, text: str, codes: np.ndarray, language: str) -> tuple[str, np.ndarray, str]:
    """The words of ``text``, said in ``codes`` int64 [L, T], that end within the longest prompt; their codes; a
    warning."""
    rate, most = voice.codec.frame_rate, voice.longest_prompt
    long = f"the reference lasts {codes.shape[1] / rate:.2f} s, and prompts in training {most / rate:.2f} s at most"
    remedy = "give a shorter recording with the text of that part"
    if voice.model.alignment is None:
        raise SpeechError(f"{long}: this voice cannot tell which words to leave out (no alignment head), so {remedy}")
    words = text.split()
    words = words[: int(DENSEST * most / rate / voice.config.seconds_per_phone) + 1]  # each takes a phone or more
    beginnings = [" ".join(words[: count + 1]) for count in range(len(words))]
    phones = voice.phones(beginnings, language)
    codes = codes[:, :most]
    ids = known_ids(voice, phones[-1], beginnings[-1], language, OF_REFERENCE)
    row = Sample(ids, codes, codes, language=voice.language_id(language))
    path = np.maximum.accumulate(read_along(voice.model, [row])[0])
    ended = [place for place, read in enumerate(phones) if len(read) <= path[-1]]
    if not ended:
        raise SpeechError(f"{long}: no word was found to end there, so {remedy}")
    at = int(np.searchsorted(path, len(phones[ended[-1]])))
    kept = beginnings[ended[-1]]
    return kept, codes[:, :at], f"{long}: its first {at / rate:.2f} s are gone on from, up to {kept!r}"


def chunks_of(voice: LoadedVoice, request: Request, sampling: SamplingConfig, speed: float = 1.0) -> list[Chunk]:
    """The segments in which a request is spoken; with rolling context there is room for it in what was trained on.

    Args:
        speed: at which they are drawn. Slow ones hold less text, so that they last no longer than in training.

    Raises:
        SpeechError: nothing to say.
    """
    language = request.language or voice.config.language
    slower = min(1.0, max(SLOWEST, speed))
    longest = max(1, int(voice.config.longest_text * slower))
    found = _cut(voice, request, language, longest)
    if len(found) > 1:
        common = max(1, int(COMMON * longest))
        if sampling.long_text.context == "rolling":
            context = round(sampling.long_text.context_seconds / voice.config.seconds_per_phone * slower)
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
    return replace(piece, before=(*phones, " "), prefix=codes, held_at=piece.speed)


def reseed(seed: int, times: int) -> int:
    """Another seed, as far from those of other requests as can be; ``times`` 0 is the seed itself."""
    return (seed + times * 0x9E3779B97F4A7C15) % 2**63
