"""From a spoken sample to the sample of any task: a maker a row of ``vall_e.tasks``.

Each maker takes the ``tts`` sample of an utterance (text, prompt and response are all there) and what else it may need.
Dimensions: L levels, R response frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vall_e.models.packing import Sample

SHORTEST_EDIT = 0.2  # of the response: what speech editing replaces at least
LONGEST_EDIT = 0.5
NO_TEXT = 0.5  # share of the samples without a text, where the task can do without


@dataclass(frozen=True)
class Given:
    """What a maker has to work with.

    Attributes:
        sample: the utterance as ``tts``.
        text: what it says, as written.
        other: int64 [L, N] codes of the same speaker saying something else, in noise where the task is about noise.
        rng: of everything drawn.
        mixed: int64 [L, R], the response and what the task mixes with it, at once; None for tasks without.
        noise: int64 [L, R], the noise in it; None for other tasks.
    """

    sample: Sample
    text: str
    other: np.ndarray
    rng: np.random.Generator
    mixed: np.ndarray | None = None
    noise: np.ndarray | None = None


def _tts(given: Given) -> Sample:
    return given.sample


def _silent(sample: Sample) -> Sample:
    """Without what belongs to a spoken output."""
    return replace(sample, response=sample.response[:, :0], corrupted=None, spoken=None, level=0, mode="ar")


def _stt(given: Given) -> Sample:
    sample = given.sample
    return replace(
        _silent(sample), task="stt", prompt=sample.prompt[:, :0], more={"source": sample.response}, symbols=sample.text
    )


def _chars(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)


def _phn(given: Given) -> Sample:
    return replace(_silent(given.sample), task="phn", chars=_chars(given.text), symbols=given.sample.text)


def _un_phn(given: Given) -> Sample:
    return replace(_silent(given.sample), task="un-phn", symbols=_chars(given.text))


def digits(number: int) -> np.ndarray:
    """Base-10 digits of ``number``, most significant first, int64."""
    return np.array([int(digit) for digit in str(number)], dtype=np.int64)


def _len(given: Given) -> Sample:
    return replace(_silent(given.sample), task="len", symbols=digits(given.sample.response.shape[1]))


def _continued(given: Given) -> Sample:
    return replace(given.sample, task="tts-c", prompt=given.sample.prompt[:, :0])


def _edit(given: Given) -> Sample:
    return _edited(given.sample, given, "cse")


def _edit_in_noise(given: Given) -> Sample:
    """What was said, what is said anew and what is around it are all in the noise, which stays."""
    return _edited(_answered(given.sample, given.mixed), given, "nse")


def _edited(sample: Sample, given: Given, task: str) -> Sample:
    """The middle of the response is what is said anew; in its place something else was said."""
    rng = given.rng
    frames = sample.response.shape[1]
    size = max(1, round(frames * rng.uniform(SHORTEST_EDIT, LONGEST_EDIT)))
    start = int(rng.integers(0, frames - size + 1))
    middle = slice(start, start + size)
    more = {
        "before": sample.response[:, :start],
        "middle": given.other[:, : 2 * size],
        "after": sample.response[:, start + size :],
    }
    return replace(
        sample, task=task, prompt=sample.prompt[:, :0], more=more, response=sample.response[:, middle],
        corrupted=None if sample.corrupted is None else sample.corrupted[:, middle], spoken=None,
    )  # fmt: skip


def _denoise(given: Given) -> Sample:
    return _from_source(_text_or_none(given), given, "ns")


def _remove(given: Given) -> Sample:
    sample = _from_source(_text_or_none(given), given, "sr")
    return replace(_answered(sample, given.noise), spoken=None)


def _extract(given: Given) -> Sample:
    """The prompt is never dropped: without it nobody knows which of the two is meant."""
    return replace(_from_source(_text_or_none(given), given, "tse"), prompt=given.other)


def _from_source(sample: Sample, given: Given, task: str) -> Sample:
    assert given.mixed is not None
    return replace(sample, task=task, prompt=sample.prompt[:, :0], more={"source": given.mixed})


def _text_or_none(given: Given) -> Sample:
    return given.sample.without_text() if given.rng.random() < NO_TEXT else given.sample


def _answered(sample: Sample, codes: np.ndarray | None) -> Sample:
    """With another response of the same length, of which the same frames are masked or random."""
    assert codes is not None and codes.shape == sample.response.shape
    if sample.corrupted is None:
        return replace(sample, response=codes)
    return replace(
        sample, response=codes, corrupted=np.where(sample.corrupted == sample.response, codes, sample.corrupted)
    )


def _convert(given: Given) -> Sample:
    return replace(given.sample.without_text(), task="vc")


MAKERS: dict[str, Callable[[Given], Sample]] = {
    "tts": _tts,
    "tts-c": _continued,
    "stt": _stt,
    "phn": _phn,
    "un-phn": _un_phn,
    "len": _len,
    "ns": _denoise,
    "sr": _remove,
    "tse": _extract,
    "cse": _edit,
    "nse": _edit_in_noise,
    "vc": _convert,
}
