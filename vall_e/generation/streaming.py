"""Speech while it is being drawn: sound in pieces, the first one early.

Frames come left to right. Kinds whose rows show level 0 only get their other levels piece by piece: a pass sees text,
prompt and all frames so far, and what was given out stays. Sound is made from the pieces with the frames around them
(``vall_e.codecs.stream``), so that in a row they are what the codec makes of all codes at once, within its tolerance.

Dimensions: L levels, l levels shown by a causal row, T frames, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from vall_e.codecs.base import Codec
from vall_e.decoding import SamplingConfig
from vall_e.family import KINDS
from vall_e.generation.engine import Candidate, Engine
from vall_e.generation.joining import Joiner
from vall_e.generation.nar import fill_levels
from vall_e.generation.planning import going_on, pause_after, plan
from vall_e.generation.respond import begins_masked
from vall_e.generation.segments import Clock, Speaker, Spoken, told
from vall_e.generation.speech import Request, SpeechError
from vall_e.generation.tempo import Tempo
from vall_e.models.packing import Sample
from vall_e.models.vall_e import VallE

if TYPE_CHECKING:
    from vall_e.generation.synthesize import Voice

FIRST_SECONDS, CHUNK_SECONDS = 0.16, 0.5


@dataclass(frozen=True)
class AudioChunk:
    """A piece of speech.

    Attributes:
        wav: float32 [N].
        sample_rate: Hz.
        start: seconds from the beginning of the stream.
        codes: int64 [L, T] that were drawn for it; the last moments of their sound may come with the next piece.
        final: the last piece of its request.
        warnings: what a listener should know of the segment whose last piece it is.
    """

    wav: np.ndarray
    sample_rate: int
    start: float
    codes: np.ndarray
    final: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pace:
    """How early and how often.

    Attributes:
        first: seconds of the first piece. It comes after these and the look-ahead have been drawn.
        chunk: seconds of each later one.
        look_ahead: seconds drawn behind a piece before it is made; None takes what the codec needs for nobody to hear
            the difference.

    Raises:
        ValueError: a piece without length, or a look back.
    """

    first: float = FIRST_SECONDS
    chunk: float = CHUNK_SECONDS
    look_ahead: float | None = None

    def __post_init__(self) -> None:
        for name in ("first", "chunk"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"the {name} piece of a stream lasts some seconds, not {getattr(self, name)}")
        if self.look_ahead is not None and not 0 <= self.look_ahead < math.inf:
            raise ValueError(f"a stream looks 0 seconds ahead or more, not {self.look_ahead}")


def stream(
    voice: Voice,
    requests: Request | Iterable[Request],
    sampling: SamplingConfig | None = None,
    pace: Pace | None = None,
) -> Iterator[AudioChunk]:
    """Speak requests one after the other, each in pieces as it is drawn.

    One candidate is drawn, the first of ``voice.speak``, and none anew: what was heard cannot be taken back for a
    better one. Kinds that draw all frames at once (demasking) give each request in a single piece. Long texts come
    segment after segment, joined as ``voice.speak`` joins them. Closing the iterator ends decoding.

    Args:
        requests: one, or any number; the next one is asked for when the one before has been spoken.
        sampling: by default the voice's own settings.
        pace: when sound is made.

    Raises:
        SpeechError: while iterating, as ``voice.speak`` does; and left to right beam search, or a duration.
    """
    sampling = (sampling or voice.config.sampling).model_copy(update={"candidates": 1})
    at_once = "ar" not in KINDS[voice.config.model.kind].modes or begins_masked(voice.model, sampling)
    start = 0.0
    for request in requests if isinstance(requests, Iterable) else [requests]:
        pieces = _whole(voice, request, sampling) if at_once else _pieces(voice, request, sampling, pace or Pace())
        for piece in pieces:
            yield replace(piece, start=start)
            start += len(piece.wav) / piece.sample_rate


def _whole(voice: Voice, request: Request, sampling: SamplingConfig) -> Iterator[AudioChunk]:
    (speech,) = voice.speak_batch([request], sampling)
    yield AudioChunk(speech.wav, speech.sample_rate, 0.0, speech.codes, True, speech.warnings)


def _pieces(voice: Voice, request: Request, sampling: SamplingConfig, pace: Pace) -> Iterator[AudioChunk]:
    if sampling.beam is not None:
        raise SpeechError("beam search knows what it says only at its end: stream without it (sampling.beam null)")
    if request.duration is not None:
        raise SpeechError(
            f"a voice of kind {voice.config.model.kind} knows how long its speech is only at its end: stream it at a "
            "speed in place of a duration, or do not stream"
        )
    segments, warnings = plan(voice, 0, request, sampling)
    speaker, rate = Speaker(voice, sampling, Clock()), voice.sample_rate
    joiner = Joiner([pause_after(segment.chunk.mark, sampling) for segment in segments[:-1]], rate)
    heard: list[Spoken] = []
    for number, segment in enumerate(segments, 1):
        if sampling.long_text.context == "rolling":
            segment = going_on(segment, heard)
        tempo, waves, parts, given = Tempo(rate, segment.tempo), [], [], 0
        sample, longest = speaker.sample(segment), speaker.limit(segment)
        drawn = draw(voice.model, voice.codec, sample, sampling, segment.seed, longest, pace, voice.draft)
        for wav, codes, candidate in drawn:
            done = candidate is not None
            waves.append(wav)
            parts.append(codes)
            wav = joiner.push(tempo.push(wav, last=done), last=done)
            if done:
                whole = np.concatenate(parts, axis=1), np.concatenate(waves)
                heard = [speaker.check(segment, candidate, *whole)]
                warnings += told(segments, number, heard[0])
            if done or len(wav):
                codes, given = np.concatenate(parts[given:], axis=1), len(parts)
                yield AudioChunk(wav, rate, 0.0, codes, done and number == len(segments), warnings if done else [])
        warnings = []


def draw(
    model: VallE,
    codec: Codec,
    sample: Sample,
    sampling: SamplingConfig,
    seed: int,
    longest: int,
    pace: Pace,
    draft: VallE | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, Candidate | None]]:
    """One prompt as pieces of sound.

    Args:
        sample: what to speak; a response that it holds already is a prefix to go on from, which is not given out.
        sampling: one candidate of an autoregressive kind.
        longest: frames after which it is cut off.
        draft: as of ``Engine``.

    Yields:
        wav float32 [N], its codes int64 [L, T], and on the last piece, whose N may be 0, what became of the row.
    """
    rate = codec.frame_rate
    waves = codec.stream(None if pace.look_ahead is None else round(pace.look_ahead * rate))
    engine = Engine(model, sampling, draft=draft)
    (ticket,) = engine.add([sample], [seed], [longest])
    (row,) = ticket.rows
    levels = _Levels(model, sample, sampling, seed)
    wanted = max(1, int(pace.first * rate)) + waves.look_ahead
    heard = 0
    while True:
        if row.done or row.count - levels.known >= wanted:
            done = row.done
            with torch.inference_mode():
                new = torch.from_numpy(levels.grow(row.codes))[None].to(model.device)
                wav = waves.push(new, last=done)[0, 0].float().cpu().numpy()
            frames = round(len(wav) / codec.sample_rate * rate)
            if frames or done:
                codes = levels.codes[:, heard : heard + frames]
                yield wav, codes, ticket.candidates()[0] if done else None
                heard, wanted = heard + frames, max(1, int(pace.chunk * rate))
            if done:
                return
        engine.step()


class _Levels:
    """All levels of the frames that were drawn, and what is in front of them."""

    def __init__(self, model: VallE, sample: Sample, sampling: SamplingConfig, seed: int) -> None:
        self.model, self.sample, self.sampling, self.seed = model, sample, sampling, seed
        self.passes = "level" in KINDS[model.config.kind].modes
        self.all = sample.response[: model.layout.levels if self.passes else model.layout.shown]

    @property
    def codes(self) -> np.ndarray:
        """int64 [L, T] without what was in front."""
        return self.all[:, self.sample.response.shape[1] :]

    @property
    def known(self) -> int:
        """T."""
        return self.codes.shape[1]

    def grow(self, drawn: np.ndarray) -> np.ndarray:
        """The frames that are new in ``drawn`` int64 [l, T], with all their levels."""
        known = self.known
        new = np.full((len(self.all), drawn.shape[1] - known), self.model.layout.codes, dtype=np.int64)
        new[: len(drawn)] = drawn[:, known:]
        self.all = np.concatenate((self.all, new), axis=1)
        if self.passes and new.shape[1]:
            seed = self.seed + known  # or every piece draws the same noise
            (self.all,) = fill_levels(self.model, [self.sample], [self.all], self.sampling, [seed])
        return self.codes[:, known:]
