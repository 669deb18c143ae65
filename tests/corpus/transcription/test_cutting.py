"""Cuts are in pauses and never in a word, pieces hold every word once and in order, bounds hold."""

from __future__ import annotations

import functools
import itertools
import operator

import numpy as np
import pytest

from tests.corpus.transcription.bursts import RATE, bursts, roughly
from vall_e.corpus.transcription.cutting import Limits, cut
from vall_e.corpus.transcription.mapping import map_text
from vall_e.corpus.transcription.pauses import Spoken, break_point, place
from vall_e.evaluation.hearing import Word

LIMITS = Limits(shortest=0.5, longest=8.0, margin=0.2, min_pause=0.1, max_pause=2.0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2])
def test_no_cut_is_in_a_word_and_all_words_are_in_the_pieces(seed, noise):
    wav, truth = bursts(120, seed, noise)
    words = place(roughly(truth, seed), wav, RATE, 0.0, last=True)
    spans = cut(words, len(wav) / RATE, LIMITS)
    assert [k for span in spans for k in range(span.first, span.last)] == list(range(len(truth)))
    for left, right in itertools.pairwise(spans):
        assert left.end <= right.start
        # True words are whole in their piece.
        assert truth[left.last - 1][2] <= left.end + 0.011 and truth[right.first][1] >= right.start - 0.011
    for span in spans:
        assert LIMITS.shortest <= span.seconds <= LIMITS.longest
    assert len(spans) > 5


def test_a_short_word_that_attention_puts_half_into_the_pause_behind_it_stays_before_that_pause():
    """As Whisper tiny heard "left of it." and "An old man" after 0.3 s."""
    heard = (("left", 0.0, 0.4), ("of", 0.4, 0.6), ("it.", 0.6, 1.06), ("An", 1.24, 1.3), ("old", 1.3, 1.8))
    wav = 0.3 * np.sin(np.arange(2 * RATE) / 5).astype(np.float32)
    wav[int(0.71 * RATE) : int(1.01 * RATE)] = 0.0
    words = place([Word(text, start, end, 0.9) for text, start, end in heard], wav, RATE, 0.0, last=True)
    assert [word.text for word in words if word.cut is not None] == ["it."]
    assert (words[2].end, words[3].start) == (pytest.approx(0.71), pytest.approx(1.01))


def test_times_are_those_of_the_recording():
    wav, truth = bursts(30, 3)
    here, there = (place(roughly(truth, 3), wav, RATE, offset, last=False) for offset in (0.0, 100.0))
    assert [word.start + 100 for word in here] == pytest.approx([word.start for word in there])
    assert there[-1].cut == pytest.approx(100 + len(wav) / RATE)
    assert here[-2].cut is None or here[-2].end <= here[-2].cut <= here[-1].start


def test_a_cut_is_where_it_is_quietest():
    random = np.random.default_rng(0)
    wav = np.full(RATE * 2, 0.0) + random.normal(0, 1e-3, RATE * 2)
    wav[: RATE // 2] += 0.3
    wav[-RATE // 2 :] += 0.3
    wav[int(1.1 * RATE) : int(1.12 * RATE)] *= 0.01
    words = place([Word("a", 0.0, 1.0, 1.0), Word("b", 1.0, 2.0, 1.0)], wav.astype(np.float32), RATE, 0.0, True)
    assert words[0].end == pytest.approx(0.5, abs=0.011) and words[1].start == pytest.approx(1.5, abs=0.011)
    assert 1.1 <= words[0].cut <= 1.12


def _spoken(*gaps: float) -> list[Spoken]:
    """Words of a second with these pauses behind them."""
    out, at = [], 0.0
    for gap in gaps:
        out.append(Spoken("w", at, at + 1.0, 1.0, at + 1.0 + gap / 2 if gap else None))
        at += 1.0 + gap
    return out


def test_the_longest_pauses_are_cut_at_and_only_as_many_as_it_takes():
    words = _spoken(0.2, 0.2, 0.6, 0.2, 0.3, 0.2, 0.2, 0.0)
    limits = Limits(0.5, 5.0, 0.2, 0.1, 2.0)
    assert [(s.first, s.last) for s in cut(words, 10.0, limits)] == [(0, 3), (3, 5), (5, 8)]
    assert [(s.first, s.last) for s in cut(words, 10.0, Limits(0.5, 20.0, 0.2, 0.1, 0.5))] == [(0, 3), (3, 8)]
    # A long pause stays outside but for the margin, a short one is shared.
    first, second, third = cut(words, 10.0, limits)
    assert (first.end, second.start) == pytest.approx((3.6, 3.8))
    assert second.end == third.start


def test_without_a_pause_a_span_stays_too_long_and_whole():
    (span,) = cut(_spoken(*[0.0] * 12), 12.0, LIMITS)
    assert (span.first, span.last) == (0, 12) and span.seconds > LIMITS.longest
    assert cut([], 3.0, LIMITS) == []


def test_turns_cut_wherever_they_are():
    spans = cut(_spoken(*[0.0] * 6), 6.0, LIMITS, turns=[1, 3])
    assert [(s.first, s.last) for s in spans] == [(0, 2), (2, 4), (4, 6)]


def test_a_stretch_is_broken_in_a_pause_of_its_second_half():
    wav, truth = bursts(80, 5)
    at = break_point(wav, RATE)
    assert at >= len(wav) / RATE / 2
    assert not any(start < at < end for _, start, end in truth)


def test_a_text_is_cut_only_where_both_sides_agree():
    given = "In 1455, the first -- great book was printed at Mainz, by the river"
    heard = [
        "in",
        "fourteen",
        "fifty",
        "five",
        "the",
        "worst",
        "great",
        "book",
        "printed",
        "at",
        "mines",
        "by",
        "the",
        "river",
    ]
    found = map_text(given, heard, "en-us")
    sure = [k for k, ok in enumerate(found.sure) if ok]
    # One given word ("1455,") is three recognised ones; "first" was misheard, "was" left out, "Mainz," misheard.
    assert [heard[k] for k in sure] == ["in", "five", "great", "printed", "by", "the"]
    assert [found.given[found.until[k]] for k in sure] == ["1455,", "the", "book", "at", "the", "river"]
    assert found.share(0, 2) == 1.0 and found.share(3, 4) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_a_mapped_text_are_the_text(seed):
    random = np.random.default_rng(seed)
    given = [str(random.choice(["one", "two", "three", "four", "five"])) for _ in range(200)]
    heard = [w if random.random() > 0.15 else "noise" for w in given if random.random() > 0.1]
    found = map_text(" ".join(given), heard, "en-us")
    edges = [0, *(found.until[k] for k in range(len(heard)) if found.sure[k]), len(given)]
    assert edges == sorted(edges)
    pieces = [given[a:b] for a, b in itertools.pairwise(edges)]
    assert functools.reduce(operator.iadd, pieces, []) == given and all(pieces)


def test_writing_without_spaces_is_mapped_by_characters():
    found = map_text("今日は 雨です", list("今日は雨です"), "ja", spaced=False)
    assert all(found.sure[:-1]) and found.until[2] == 3
