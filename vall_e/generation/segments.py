"""Speaking the segments of several requests in batches: what to decode from, checks, retries, rolling context.

Dimensions: L levels, l levels of the first pass, T frames, N samples, S phones.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vall_e.decoding import SamplingConfig
from vall_e.family import KINDS
from vall_e.generation.alignment import read_along
from vall_e.generation.ar import Candidate
from vall_e.generation.attempts import best_attempts
from vall_e.generation.duration import planned_frames
from vall_e.generation.nar import fill_levels
from vall_e.generation.planning import Piece
from vall_e.generation.quality import (
    Fault,
    faults_of_codes,
    faults_of_length,
    faults_of_reading,
    faults_of_sound,
)
from vall_e.generation.ranking import Ranker, RankError
from vall_e.generation.respond import begins_masked, respond
from vall_e.models.packing import Sample

if TYPE_CHECKING:
    from vall_e.generation.loaded import LoadedVoice

LONGEST = 3.0  # a response may last this many times what its phones take on average, and a second


@dataclass(frozen=True)
class Spoken:
    """A segment that was spoken: codes int64 [L, T], wav float32 [N], what is wrong with it, and how it ranks.

    ``tail`` are the last words and their codes, to go on from; None where nobody knows where they begin.
    """

    codes: np.ndarray
    wav: np.ndarray
    score: float
    faults: tuple[Fault, ...]
    rank: tuple[float, ...]
    tail: tuple[tuple[str, ...], np.ndarray] | None


def told(pieces: Sequence[Piece], number: int, spoken: Spoken) -> list[str]:
    """What is wrong with piece ``number`` (from 1) of a request, for a listener."""
    where = f"segment {number} ({pieces[number - 1].chunk.text!r}): " if len(pieces) > 1 else ""
    return [where + fault.message for fault in spoken.faults]


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.first_frame: float | None = None

    @contextmanager
    def on(self, what: str):
        started = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - started


class Speaker:
    """Speaks pieces with one voice and one set of settings.

    Args:
        progress: called with the share of the current batch that is done, 0 to 1.
    """

    def __init__(
        self,
        voice: LoadedVoice,
        sampling: SamplingConfig,
        clock: Clock,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.voice, self.sampling, self.clock, self.progress = voice, sampling, clock, progress
        self.rate = voice.codec.frame_rate

    def speak(self, pieces: Sequence[Piece]) -> list[Spoken]:
        """One batch, and what is wrong in it anew."""

        def draw(which: Sequence[int], seeds: Sequence[int]) -> list[Spoken]:
            return self._attempt([replace(pieces[i], seed=seed) for i, seed in zip(which, seeds, strict=True)])

        return best_attempts(self.voice.model, self.sampling, [piece.seed for piece in pieces], draw)

    def _attempt(self, pieces: Sequence[Piece]) -> list[Spoken]:
        voice, sampling, seeds = self.voice, self.sampling, [piece.seed for piece in pieces]
        samples = [self.sample(piece) for piece in pieces]
        limits = [self.limit(piece) for piece in pieces]

        def wrong(index: int, candidate: Candidate) -> int:
            return len(self._length(candidate, pieces[index])) + len(faults_of_codes(candidate.codes, self.rate))

        def levels(index: int, candidates: Sequence[Candidate]) -> list[np.ndarray]:
            codes = [candidate.codes for candidate in candidates]
            if "level" not in KINDS[voice.model.config.kind].modes:
                return codes
            rows = [samples[index]] * len(codes)
            return fill_levels(voice.model, rows, codes, sampling, [seeds[index]] * len(codes))

        def judged(index: int, codes: Sequence[np.ndarray]) -> list[float]:
            if voice.judge is None:
                raise RankError("sampling.rank recogniser needs a recogniser: give Voice.load one as judge")
            waves, piece = [voice.to_wave(c) for c in codes], pieces[index]
            return voice.judge.errors(waves, voice.sample_rate, piece.chunk.text, piece.language)

        ranker = Ranker(voice.model, sampling.rank, samples, wrong, levels, judged)
        self.clock.first_frame, started = None, time.perf_counter()
        with self.clock.on("decode"):
            frames, tell = self._frames(pieces, samples, limits), self._teller(max(limits))
            found = respond(voice.model, samples, sampling, seeds, limits, ranker, tell, frames, draft=voice.draft)
            paths = self._read(samples, [codes for _, codes in found])
        if self.clock.first_frame is not None:
            self.clock.spent["prefill"] += self.clock.first_frame - started
            self.clock.spent["decode"] -= self.clock.first_frame - started
        out = []
        for i, (piece, sample, (candidate, codes)) in enumerate(zip(pieces, samples, found, strict=True)):
            with self.clock.on("codec"):
                wav = voice.to_wave(codes)
            path = None if paths is None else paths[i]
            out.append(self._checked(piece, sample, candidate, codes, wav, path, ranker.chosen[i]))
        return out

    def check(self, piece: Piece, candidate: Candidate, codes: np.ndarray, wav: np.ndarray) -> Spoken:
        """A piece that was drawn elsewhere: the codes int64 [L, T] of its ``candidate`` and their sound float32 [N]."""
        sample = self.sample(piece)
        paths = self._read([sample], [codes])
        return self._checked(piece, sample, candidate, codes, wav, None if paths is None else paths[0], ())

    def _checked(
        self,
        piece: Piece,
        sample: Sample,
        candidate: Candidate,
        codes: np.ndarray,
        wav: np.ndarray,
        path: np.ndarray | None,
        rank: tuple[float, ...],
    ) -> Spoken:
        """What is wrong with what was drawn; ``path`` int64 [P + T] says which phone each frame says."""
        faults = [*self._length(candidate, piece), *faults_of_sound(wav, self.voice.sample_rate)]
        faults += faults_of_codes(codes, self.rate)
        tail = None
        if path is not None and codes.shape[1]:
            phones = (*piece.before, *piece.chunk.phones)
            own = path[piece.prefix.shape[1] :] - len(piece.before)
            per_phone = piece.seconds * self.rate / len(piece.chunk.phones)
            faults += faults_of_reading(own, piece.chunk.phones, per_phone)
            tail = self._tail(np.concatenate((sample.response, codes), axis=1), path, phones)
        return Spoken(codes, wav, candidate.score, tuple(faults), rank, tail)

    def _frames(self, pieces: Sequence[Piece], samples: Sequence[Sample], limits: Sequence[int]) -> list[int | None]:
        """How long each piece is to be; None where it goes left to right and ends by itself."""
        if not begins_masked(self.voice.model, self.sampling):
            return [None] * len(pieces)
        asked = [max(1, round(piece.seconds * self.rate)) if piece.timed else None for piece in pieces]
        speeds, held_at = [piece.speed for piece in pieces], [piece.held_at for piece in pieces]
        return list(planned_frames(self.voice.model, samples, limits, asked, speeds, held_at))

    def sample(self, piece: Piece) -> Sample:
        text = self.voice.ids((*piece.before, *piece.chunk.phones))
        return Sample(text, piece.prompt, piece.prefix, language=self.voice.language_id(piece.language))

    def limit(self, piece: Piece) -> int:
        """Frames that a piece may take."""
        return max(1, round(min(self.sampling.max_seconds, 1.0 + LONGEST * piece.seconds) * self.rate))

    def _teller(self, longest: int) -> Callable[[int, int], None]:
        def tell(frames: int, live: int) -> None:
            if self.clock.first_frame is None:
                self.clock.first_frame = time.perf_counter()
            if self.progress is not None:
                self.progress(min(1.0, LONGEST * frames / longest))

        return tell

    def _length(self, candidate: Candidate, piece: Piece) -> list[Fault]:
        frames = candidate.codes.shape[1]
        return faults_of_length(frames, candidate.finished, piece.seconds * self.rate, self.rate)

    def _read(self, samples: Sequence[Sample], codes: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """Which phone each frame says, prefix included; None for a voice without alignment head."""
        model = self.voice.model
        if model.alignment is None:
            return None
        rows = [
            replace(s, response=np.concatenate((s.response, c), axis=1)) for s, c in zip(samples, codes, strict=True)
        ]
        spoken = [i for i, row in enumerate(rows) if row.response.shape[1]]
        paths = [np.zeros(0, dtype=np.int64)] * len(rows)
        for i, path in zip(spoken, read_along(model, [rows[i] for i in spoken]) if spoken else [], strict=True):
            paths[i] = path
        return paths

    def _tail(
        self, codes: np.ndarray, path: np.ndarray, phones: Sequence[str]
    ) -> tuple[tuple[str, ...], np.ndarray] | None:
        """The last whole words that fit into the context, with their codes int64 [L, T]."""
        most = round(self.sampling.long_text.context_seconds * self.rate)
        for start in (0, *(i + 1 for i, phone in enumerate(phones) if phone == " ")):
            at = int(np.searchsorted(np.maximum.accumulate(path), start))
            if 0 < codes.shape[1] - at <= most:
                return tuple(phones[start:]), codes[:, at:]
        return None
