"""Segments of speech one after the other, with the pauses that are asked for and without clicks.

Dimensions: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FADE_SECONDS = 0.01  # of both edges at a join: long enough for no click, too short to be heard as a fade
FRAME_SECONDS = 0.02  # over which loudness is looked at
EDGE_DB = 40.0  # below the loudest frame so far: silence at the edges
NO_SOUND = 1e-6  # RMS


class Joiner:
    """One wave of segments whose sound comes in pieces, whatever the pieces.

    Silence at the edges that meet is cut off. Where a pause follows, the sound before fades out and the one behind
    fades in; where none does, they cross-fade, with equal power, for what is joined is not the same sound. What is
    silent is told by the loudest frame so far, that of the segments before included.

    Args:
        pauses: seconds between each segment and the next, one fewer than segments.
        rate: Hz.

    Attributes:
        places: where each segment that has ended starts and ends in the whole, in samples.
    """

    def __init__(self, pauses: Sequence[float], rate: int) -> None:
        self.rate, self.places = rate, []
        self._pauses = list(pauses)
        self._fade, self._frame = round(FADE_SECONDS * rate), max(1, int(FRAME_SECONDS * rate))
        self._loudest, self._count = NO_SOUND, 0  # RMS; samples given out
        self._held = _none()  # the end of the segment before, where no pause follows it
        self._begin()

    def _begin(self) -> None:
        self._wav, self._looked, self._given = _none(), 0, 0  # samples of the segment so far, seen, given or cut off
        self._sounds: tuple[int, int] | None = None  # from the first loud frame to the last one
        self._start: int | None = None  # in the whole, once it is known

    def push(self, wav: np.ndarray, last: bool = False) -> np.ndarray:
        """The samples that the next piece ``wav`` float32 [N] of a segment made certain, float32.

        Args:
            last: the segment ends here; the pause behind it is given out too.
        """
        self._wav = np.concatenate((self._wav, np.asarray(wav, dtype=np.float32)))
        self._look()
        index = len(self.places)
        ends = index == len(self._pauses)  # the edge of the whole stays as it is
        if not last:
            sound_end = self._sounds[1] if self._sounds else 0
            until = len(self._wav) if ends else min(sound_end, len(self._wav) - self._fade)
            if index and self._sounds is None:
                until = 0
            return self._counted(self._up_to(until))
        until = len(self._wav)
        if not ends and self._sounds and self._sounds[1] <= until - self._frame:
            until = min(until, self._sounds[1] + self._fade)
        out = self._up_to(until, whole=True)
        pause = None if ends else self._pauses[index]
        if pause is None:
            self._held = _none()
        else:
            out, self._held = np.split(out, [max(0, len(out) - self._fade)])
            if pause > 0:
                _fade(self._held, falling=True)
        self.places.append((self._start, self._count + len(out) + len(self._held)))
        if pause is not None and pause > 0:
            # What is kept of the edges on both sides is part of the pause.
            silence = np.zeros(max(0, round(pause * self.rate) - 2 * self._fade), dtype=np.float32)
            out, self._held = np.concatenate((out, self._held, silence)), _none()
        self._begin()
        return self._counted(out)

    def _look(self) -> None:
        """Find the frames with sound in what came since."""
        count = len(self._wav) // self._frame
        frames = self._wav[self._looked * self._frame : count * self._frame].reshape(-1, self._frame)
        levels = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
        for place, level in enumerate(levels.tolist(), self._looked):
            self._loudest = max(self._loudest, level)
            if level >= self._loudest * 10 ** (-EDGE_DB / 20) and level >= NO_SOUND:
                first = self._sounds[0] if self._sounds else place * self._frame
                self._sounds = first, (place + 1) * self._frame
        self._looked = count

    def _up_to(self, until: int, whole: bool = False) -> np.ndarray:
        """What is not given out yet of the segment before sample ``until``, joined to what was before it."""
        if self._start is None:
            index = len(self.places)
            start = max(0, self._sounds[0] - self._fade) if index and self._sounds else 0
            if not whole and until - start < self._fade:
                return _none()
            self._given, self._start = until, self._count
            return self._joined(self._wav[start:until].copy()) if index else self._wav[start:until]
        out = self._wav[self._given : max(until, self._given)]
        self._given = max(until, self._given)
        return out

    def _joined(self, head: np.ndarray) -> np.ndarray:
        """The first samples of a segment behind the one before."""
        fade, held = self._fade, self._held
        _fade(head[:fade], falling=False)
        if len(held):
            _fade(held, falling=True)
        if min(len(held), len(head)) < fade:
            self._start += len(held)
            return np.concatenate((held, head))
        head[:fade] += held
        return head

    def _counted(self, out: np.ndarray) -> np.ndarray:
        self._count += len(out)
        return out


def join(waves: Sequence[np.ndarray], pauses: Sequence[float], rate: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """One wave of several, see ``Joiner``.

    Args:
        waves: float32 [N_i] of the segments; a single one stays as it is.
        pauses: seconds between each and the next, one fewer than waves.
        rate: Hz.

    Returns:
        float32 [N], and for each segment where it starts and ends in it, in samples.
    """
    joiner = Joiner(pauses, rate)
    out = [joiner.push(wave, last=True) for wave in waves]
    return np.concatenate(out), joiner.places


def _none() -> np.ndarray:
    return np.zeros(0, dtype=np.float32)


def _fade(edge: np.ndarray, falling: bool) -> None:
    """A quarter of a sine over ``edge`` [N], in place: squares of a falling and a rising one add up to 1."""
    ramp = np.sin(np.pi / 2 * (np.arange(len(edge)) + 0.5) / max(1, len(edge))).astype(np.float32)
    edge *= ramp[::-1] if falling else ramp
