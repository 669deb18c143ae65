"""Error counts against a textbook edit distance, on tokens that a naive tokeniser would break."""

from __future__ import annotations

import numpy as np
import pytest

from vall_e.evaluation.error_rates import (
    Errors,
    align,
    char_errors,
    corpus_rate,
    count_errors,
    phone_errors,
    word_errors,
)


def levenshtein(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def test_random_tokens_match_the_textbook_and_are_capped() -> None:
    rng = np.random.default_rng(0)
    vocabulary = ["one", "two words", " ", "ˈɛ", "", "A", "a", "x-y"]
    capped = 0
    for _ in range(200):
        reference = [vocabulary[i] for i in rng.integers(0, len(vocabulary), rng.integers(0, 6))]
        hypothesis = [vocabulary[i] for i in rng.integers(0, len(vocabulary), rng.integers(0, 12))]
        distance = levenshtein(reference, hypothesis)
        capped += distance > len(reference)
        assert count_errors(reference, hypothesis) == Errors(min(distance, len(reference)), len(reference))
    assert capped > 20


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("", "", (0, 0)),
        ("", "loop loop", (0, 0)),
        ("one two", "", (2, 2)),
        ("one", "one one one one", (1, 1)),
        ("one two three", "one three", (1, 3)),
        ("one two", "two one", (2, 2)),
    ],
)
def test_word_errors_by_hand(reference: str, hypothesis: str, errors: tuple[int, int]) -> None:
    assert word_errors(reference.split(), hypothesis.split()) == Errors(*errors)


def test_characters_count_the_space_and_phones_do_not() -> None:
    assert char_errors(["ab", "c"], ["abc"]) == Errors(1, 4)
    assert phone_errors(["t", "uː", " ", "w"], ["t", "uː", "w"]) == Errors(0, 3)


def test_corpus_rate_weighs_by_length_and_refuses_nothing() -> None:
    assert corpus_rate([Errors(1, 1), Errors(0, 9)]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="reference token"):
        corpus_rate([Errors(0, 0)])


def test_alignment_rebuilds_both_sides() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        a = [str(i) for i in rng.integers(0, 4, rng.integers(0, 7))]
        b = [str(i) for i in rng.integers(0, 4, rng.integers(0, 7))]
        steps = align(a, b)
        assert [s.reference for s in steps if s.kind != "insert"] == a
        assert [s.hypothesis for s in steps if s.kind != "delete"] == b
        assert all((s.kind == "equal") == (s.reference == s.hypothesis) for s in steps)
        assert sum(s.kind != "equal" for s in steps) == levenshtein(a, b)
