"""Faults of speech: each is found where it is planted, and sound speech has none."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from vall_e.generation.alignment import trace
from vall_e.generation.quality import faults_of_codes, faults_of_length, faults_of_reading, faults_of_sound

RATE = 8000


@pytest.mark.parametrize("frames, finished, kind", [
    (50, True, []), (20, True, []), (100, True, []),
    (50, False, ["runaway"]), (0, True, ["empty"]), (10, True, ["short"]), (190, True, ["long"]),
])  # fmt: skip
def test_lengths_far_from_what_a_text_takes(frames, finished, kind):
    assert [f.kind for f in faults_of_length(frames, finished, 50, 50)] == kind


def test_silence_is_found_inside_and_throughout():
    rng = np.random.default_rng(0)
    speech = (0.1 * rng.standard_normal(RATE)).astype(np.float32)
    quiet = (1e-4 * rng.standard_normal(2 * RATE)).astype(np.float32)
    assert faults_of_sound(speech, RATE) == [] == faults_of_sound(np.zeros(0, np.float32), RATE)
    assert faults_of_sound(np.concatenate((speech, quiet[:RATE], speech)), RATE) == []
    (found,) = faults_of_sound(np.concatenate((speech, quiet, speech)), RATE)
    assert found.kind == "silence" and "2.0 s of silence" in found.message
    assert faults_of_sound(quiet, RATE)[0].kind != []
    assert faults_of_sound(quiet / 100, RATE)[0].message == "silent throughout"


@pytest.mark.parametrize("period", [1, 3, 11])
def test_loops_of_codes_are_found_and_speech_is_none(period):
    rng = np.random.default_rng(period)
    speech, loop = rng.integers(500, size=(2, 200)), rng.integers(500, size=(2, period))
    assert faults_of_codes(speech, 50) == [] == faults_of_codes(speech[:, :0], 50)
    (found,) = faults_of_codes(np.concatenate((speech, np.tile(loop, 100)[:, :120]), axis=1), 50)
    assert found.kind == "loop" and f"the same {period / 50:.2f} s" in found.message
    assert faults_of_codes(np.concatenate((speech, np.tile(loop, 100)[:, :40], speech), axis=1), 50) == []


def posteriors(said, slots: int, rng: np.random.Generator, sure: float = 4.0) -> np.ndarray:
    """Noisy log p [T, S] of frames that say ``said``."""
    logits = rng.standard_normal((len(said), slots))
    logits[np.arange(len(said)), said] += sure
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_the_way_through_the_text_is_the_best_of_all():
    rng, jump = np.random.default_rng(1), 3.0
    for frames, slots in ((5, 3), (6, 2), (4, 4)):
        log_p = 3 * rng.standard_normal((frames, slots))

        def worth(path, log_p=log_p):
            moves = sum(b not in (a, a + 1) for a, b in pairwise(path)) + (path[0] != 0)
            return log_p[np.arange(len(path)), list(path)].sum() - jump * moves

        best = max(product(range(slots), repeat=frames), key=worth)
        assert worth(trace(log_p, jump).tolist()) == pytest.approx(worth(best))


PHONES = list("abcd efgh ijkl mnop")


def read(places) -> list:
    said = np.repeat(list(places), 4)
    return faults_of_reading(trace(posteriors(said, len(PHONES), np.random.default_rng(0))), PHONES, 4.0)


def test_what_is_read_whole_has_no_fault():
    assert read(range(19)) == []
    assert read([p for p in range(19) if PHONES[p] != " "]) == []  # gaps need no frame
    assert read(range(18)) == []  # the alignment is not exact to a phone


def test_an_end_that_was_not_spoken_a_word_left_out_and_one_said_twice_are_named():
    (unspoken,) = read(range(11))
    assert unspoken.kind == "unspoken" and "/jkl mnop/" in unspoken.message
    (missing,) = read([*range(4), *range(10, 19)])
    assert missing.kind == "missing" and "/efgh/" in missing.message
    (twice,) = read([*range(9), *range(5, 19)])
    assert twice.kind == "repeated" and "/efgh/" in twice.message


@pytest.mark.parametrize("word, kind", [(0, "missing"), (1, "missing"), (3, "unspoken")])
def test_a_short_word_with_next_to_no_frames_was_left_out(word: int, kind: str):
    """The way through the text passes by phones that were not said, a frame each."""
    phones = list("ab cd efgh ij")
    spans = [(0, 2), (3, 5), (6, 10), (11, 13)]
    frames = [7 if phone != " " else 3 for phone in phones]
    assert faults_of_reading(np.repeat(np.arange(len(phones)), frames), phones, 7.0) == []
    for left in (1, 0):
        few = [left if spans[word][0] <= i < spans[word][1] else n for i, n in enumerate(frames)]
        (fault,) = faults_of_reading(np.repeat(np.arange(len(phones)), few), phones, 7.0)
        assert fault.kind == kind and f"/{''.join(phones[slice(*spans[word])])}/" in fault.message
    quick = [3 if n == 7 else n for n in frames]
    assert faults_of_reading(np.repeat(np.arange(len(phones)), quick), phones, 7.0) == []
    single = list("a bc")  # a sound alone may be as short as a frame
    assert faults_of_reading(np.repeat(np.arange(4), [1, 1, 7, 7]), single, 7.0) == []
