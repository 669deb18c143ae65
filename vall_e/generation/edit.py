"""Speech editing: other words between two times of a recording, all else untouched.

A voice that learned ``cse`` (or ``nse``, in noise) is shown what is before, between and behind and says the middle
anew (SpeechX, 2308.06873, section 3.2). One that demasks fills the middle between codes that are given. Any other goes
on from what is before and does not know what comes behind.

Dimensions: N samples, L levels, T frames, n codes per level.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vall_e.audio import resample
from vall_e.decoding import SamplingConfig
from vall_e.generation import splice as joins
from vall_e.generation.ar import Candidate
from vall_e.generation.attempts import best_attempts
from vall_e.generation.duration import predict_frames, stop_bounds
from vall_e.generation.loaded import LoadedVoice
from vall_e.generation.quality import Fault, faults_of_codes, faults_of_length, faults_of_sound
from vall_e.generation.recording import Changed, check_sound, decode, encode, goodness, language_id, text_ids
from vall_e.generation.respond import begins_masked, respond
from vall_e.generation.segments import LONGEST
from vall_e.generation.speech import SpeechError
from vall_e.models.packing import Sample

FADE = 0.02  # seconds of each cross-fade
REACH = 0.06  # seconds beyond a border in which a quieter place is looked for
LOUDER, QUIETER = 4.0, 0.25  # what the loudness of the new part may be changed by
MARKED = re.compile(r"^([^\[\]]*)\[([^\[\]]*)\]([^\[\]]*)$", re.DOTALL)


@dataclass(frozen=True)
class _Window:
    """The part of a recording that the model sees.

    Attributes:
        codes: int64 [L, T].
        gain: see ``recording.encode``.
        offset: where it begins, a sample of the recording.
        start, end: frames that are replaced.
    """

    codes: np.ndarray
    gain: float
    offset: int
    start: int
    end: int


@dataclass(frozen=True)
class _Part:
    """A new part that was drawn: codes int64 [L, T]; the rest as of ``attempts.Attempt``."""

    codes: np.ndarray
    faults: tuple[Fault, ...]
    rank: tuple[float, ...]


def edit(
    voice: LoadedVoice,
    wav: np.ndarray,
    rate: int,
    start: float,
    end: float,
    text: str,
    seconds: float | None = None,
    noise: bool = False,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    language: str | None = None,
) -> Changed:
    """Replace what is said from ``start`` to ``end``; a new part with a fault is drawn anew, as ``voice.speak`` does.

    Args:
        wav: samples at ``rate`` Hz; see ``speech.one_channel``.
        start, end: seconds; equal to insert something.
        text: the whole sentence as it shall be, the new words in brackets: ``seven [three] nine``. Empty ones
            take the old words out and say nothing new. Brackets may be left out where the voice learned the task or
            demasks.
        seconds: how long the new part is to be; None lets the model say.
        noise: the recording is noisy, and so shall the new part be (``nse``).
        language: of the text; None for the voice's own.

    Returns:
        the recording at its own rate. Outside ``Changed.start`` and ``end`` its samples are those of ``wav`` (of
        several channels their mean), bit for bit; ``codes`` are those of the new part.

    Raises:
        SpeechError: times outside the recording, a text without words, or one whose new words are not marked for a
            voice that needs that; empty brackets where nothing is to be taken out, or nothing would be left.
    """
    started, sampling = time.perf_counter(), sampling or voice.config.sampling
    wav = check_sound(wav, "recording")
    length = len(wav) / rate
    if not 0 <= start <= end <= length:
        raise SpeechError(f"the times {start:g} s and {end:g} s are not in order inside a recording of {length:.2f} s")
    if seconds is not None and not 0 < seconds <= sampling.max_seconds:
        raise SpeechError(f"the new part lasts more than 0 and up to {sampling.max_seconds:g} s, not {seconds:g} s")
    warnings: list[str] = []
    words = _Words.read(voice, text, language)
    if words.new is not None and not len(words.new):
        if start == end or end - start == length or seconds is not None:
            raise SpeechError(
                f"no new words in {text!r}: they take out what is between two times, which must differ and leave "
                f"something ({start:g} s and {end:g} s of {length:.2f} s), without a length of the new part"
            )
        codes = np.zeros((voice.config.levels, 0), dtype=np.int64)
        out, first, last = _taken_out(wav, rate, start, end)
    else:
        window = _window(voice, wav, rate, start, end, sampling.max_seconds, warnings)
        codes = _new_codes(voice, window, words, seconds, noise, seed, sampling, language, warnings)
        if codes.shape[1] == 0:
            warnings.append("the model said nothing: what was between the two times is gone")
        out, first, last = _joined(voice, wav, rate, window, codes)
    taken = time.perf_counter() - started
    return Changed(out, rate, codes, taken, first / rate, last / rate, warnings)


def _window(
    voice: LoadedVoice, wav: np.ndarray, rate: int, start: float, end: float, longest: float, warnings: list[str]
) -> _Window:
    """What is around the edit, no longer than in training, with the borders of the edit where it is quiet."""
    around = max(1.0, longest - (end - start)) / 2
    low, high = max(0.0, start - around), min(len(wav) / rate, end + around)
    if high - low < len(wav) / rate:
        warnings.append(f"the model heard {low:.2f} to {high:.2f} s only: the text is to be what is said there")
    offset = round(low * rate)
    part = wav[offset : round(high * rate)]
    codes, gain = encode(voice, resample(part, rate, voice.sample_rate))
    per_second, reach = voice.codec.frame_rate, max(1, round(REACH * voice.codec.frame_rate))
    first = min(int((start - low) * per_second), codes.shape[1])
    last = min(int(np.ceil((end - low) * per_second - 1e-6)), codes.shape[1])
    before = np.arange(max(0, first - reach), first + 1)
    behind = np.arange(last, min(codes.shape[1], last + reach) + 1)
    first, last = (
        int(places[joins.quietest(part, np.round(places / per_second * rate).astype(np.int64), rate)])
        for places in (before, behind)
    )
    return _Window(codes, gain, offset, first, last)


def _new_codes(
    voice: LoadedVoice,
    window: _Window,
    words: _Words,
    seconds: float | None,
    noise: bool,
    seed: int,
    sampling: SamplingConfig,
    language: str | None,
    warnings: list[str],
) -> np.ndarray:
    """Codes int64 [L, T] of the new part, drawn anew where something is wrong with it."""
    model, per_second = voice.model, voice.codec.frame_rate
    task, given = "nse" if noise else "cse", None
    learned = task in voice.config.model.all_tasks
    if not learned and sampling.first == "auto":  # where a kind can do both, demasking knows what comes behind
        sampling = sampling.model_copy(update={"first": "mask"})
    before, middle, behind = np.split(window.codes, [window.start, window.end], axis=1)
    kept = before.shape[1] + behind.shape[1]
    frames = None if seconds is None else max(1, round(seconds * per_second))
    expected = frames or words.expected_frames(voice, kept)
    longest = round(per_second + LONGEST * expected)
    prompt = np.concatenate((before, behind), axis=1)[:, : max(1, round(voice.config.prompt_seconds * per_second))]
    sample = Sample(words.all, prompt, prompt[:, :0], language=language_id(voice, language))
    if frames is None and begins_masked(model, sampling):
        (whole,) = predict_frames(model, [sample], [kept + longest])
        frames = round(min(max(whole - kept, 0.5 * expected), 2 * expected))
    if noise and not learned:
        warnings.append("this voice never learned nse: the noise of the new part may be another, or none")
    if learned:
        more = {"before": before, "middle": middle, "after": behind}
        sample = replace(sample, prompt=prompt[:, :0], task=task, more=more)
    elif begins_masked(model, sampling):
        blank = np.full((len(prompt), frames), model.layout.codes, dtype=np.int64)
        given = np.concatenate((before, blank, behind), axis=1)
    else:
        sample = replace(sample, text=words.until_new(behind.shape[1] / per_second), response=before)
        warnings.append(
            f"this voice never learned {task} and does not demask: it went on from what is before the edit without "
            "knowing what comes behind it"
        )
    longest = longest if frames is None else stop_bounds(frames)[1]
    new = slice(None) if given is None else slice(window.start, window.start + frames)

    def decoded(candidate: Candidate) -> list[Fault]:
        codes = candidate.codes[:, new]
        length = faults_of_length(codes.shape[1], candidate.finished, expected, per_second)
        return [*length, *faults_of_codes(codes, per_second)]

    def choose(candidates: Sequence[Candidate], _: Sample) -> Candidate:
        return max(candidates, key=lambda c: (-len(decoded(c)), goodness(c)))

    def draw(_: Sequence[int], seeds: Sequence[int]) -> list[_Part]:
        known = None if given is None else [given]
        ((chosen, codes),) = respond(model, [sample], sampling, seeds, [longest], choose, frames=[frames], given=known)
        sound = faults_of_sound(voice.to_wave(codes[:, new]), voice.sample_rate)
        return [_Part(codes[:, new], (*decoded(chosen), *sound), (goodness(chosen),))]

    (part,) = best_attempts(model, sampling, [seed], draw)
    warnings += [f"the new part: {fault.message}" for fault in part.faults if fault.kind != "empty"]
    return part.codes


@dataclass(frozen=True)
class _Words:
    """Phone ids int64 [S] of the sentence, and, where its new words are marked, of those and of all up to their end."""

    all: np.ndarray
    new: np.ndarray | None
    up_to: np.ndarray | None

    @classmethod
    def read(cls, voice: LoadedVoice, text: str, language: str | None) -> _Words:
        """Raises SpeechError for a text without words, or with brackets that mark none."""
        marked = MARKED.match(text)
        if marked is None and ("[" in text or "]" in text):
            raise SpeechError(f"mark the new words with one pair of brackets, as in seven [three] nine: {text!r}")
        ids = text_ids(voice, "".join(marked.groups()) if marked else text, language)
        if not len(ids):
            raise SpeechError(f"nothing to say in {text!r}: give the whole sentence as it shall be")
        if marked is None:
            return cls(ids, None, None)
        return cls(ids, text_ids(voice, marked[2], language), text_ids(voice, marked[1] + marked[2], language))

    def expected_frames(self, voice: LoadedVoice, kept: int) -> float:
        """What the new words take on average; where nobody marked them, what all take but for ``kept`` frames."""
        per_phone = voice.config.seconds_per_phone * voice.codec.frame_rate
        expected = len(self.all) * per_phone - kept if self.new is None else len(self.new) * per_phone
        return max(expected, min(len(self.all), 3) * per_phone)

    def until_new(self, left: float) -> np.ndarray:
        """The sentence up to the last new word, behind which ``left`` seconds of the recording come.

        Raises:
            SpeechError: nobody said where that is.
        """
        if self.up_to is None and left > REACH:
            raise SpeechError(
                "this voice never learned to edit and has to be told which words are new: mark them with brackets, as "
                "in seven [three] nine"
            )
        return self.all if self.up_to is None else self.up_to


def _joined(
    voice: LoadedVoice, wav: np.ndarray, rate: int, window: _Window, codes: np.ndarray
) -> tuple[np.ndarray, int, int]:
    """The recording with the new part in it, and the samples between which it is new."""
    known, per_second = window.codes, voice.codec.frame_rate
    around = np.concatenate((known[:, : window.start], codes, known[:, window.end :]), axis=1)
    piece = resample(decode(voice, around, window.gain), voice.sample_rate, rate)
    start, end = (window.offset + round(frame / per_second * rate) for frame in (window.start, window.end))
    end = min(end, len(wav))
    first = round(window.start / per_second * rate)
    last = min(len(piece), first + round(codes.shape[1] / per_second * rate))
    heard = window.offset + round(known.shape[1] / per_second * rate)
    context = np.concatenate((wav[window.offset : start], wav[end:heard]))
    level, new = joins.active_level(context, rate), joins.active_level(piece[first:last], rate)
    if level > 0 and new > 0:
        peak = float(np.abs(piece[first:last]).max())
        piece = piece * np.float32(min(max(level / new, QUIETER), LOUDER, 0.99 / peak))
    fade = round(FADE * rate)
    lead, tail = min(fade, start, first), min(fade, len(wav) - end, len(piece) - last)
    out = joins.splice(wav, piece[first - lead : last + tail], start, end, lead, tail)
    return out, start - lead, start + (last - first) + tail


def _taken_out(wav: np.ndarray, rate: int, start: float, end: float) -> tuple[np.ndarray, int, int]:
    """The recording without what is from ``start`` to ``end`` seconds, and the samples between which it fades from what
    is before to what is behind, in quiet places."""
    first, last = round(start * rate), min(round(end * rate), len(wav))
    reach = np.arange(0, round(REACH * rate) + 1, max(1, rate // 200))
    before, behind = first - reach[reach <= first], last + reach[reach <= len(wav) - last]
    first, last = (int(places[joins.quietest(wav, places, rate)]) for places in (before, behind))
    half = min(round(FADE * rate / 2), first, len(wav) - last)
    join = joins.cross_fade(wav[first - half : first + half], wav[last - half : last + half])
    return np.concatenate((wav[: first - half], join, wav[last + half :])), first - half, first + half
