"""How far a hypothesis is from its reference, in words, characters or phones.

Errors are Levenshtein's (substitutions + deletions + insertions, by jiwer) and capped at the reference's
length: a recogniser that loops on one bad clip must not outweigh twenty good ones. The rate of a corpus
is the sum of errors over the sum of reference lengths, not the mean of the utterances' rates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer


@dataclass(frozen=True)
class Errors:
    """Errors of one utterance: ``errors`` <= ``count``, both in tokens; ``count`` is the reference's length."""

    errors: int
    count: int


@dataclass(frozen=True)
class Step:
    """One step of an alignment: ``kind`` is equal, substitute, delete or insert; the missing side is empty."""

    kind: str
    reference: str
    hypothesis: str


def _as_sentences(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[str, str]:
    """Tokens renamed to numbers, so that no token can be split or stripped on its way through jiwer."""
    names: dict[str, str] = {}
    renamed = [[names.setdefault(token, str(len(names))) for token in side] for side in (reference, hypothesis)]
    return " ".join(renamed[0]), " ".join(renamed[1])


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """Edit distance of two token lists, at most the reference's length.

    An empty reference has nothing to be wrong about: ``Errors(0, 0)``.

    >>> count_errors("one two three".split(), "one three".split())
    Errors(errors=1, count=3)
    """
    if not reference or not hypothesis:
        return Errors(len(reference), len(reference))
    found = jiwer.process_words(*_as_sentences(reference, hypothesis))
    return Errors(min(found.substitutions + found.deletions + found.insertions, len(reference)), len(reference))


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """Errors in words."""
    return count_errors(reference, hypothesis)


def char_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """Errors in characters of the words, one space between them counted as a character."""
    return count_errors(list(" ".join(reference)), list(" ".join(hypothesis)))


def phone_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """Errors in phones; the " " between words is no phone and does not count."""
    return count_errors([p for p in reference if p.strip()], [p for p in hypothesis if p.strip()])


def corpus_rate(errors: Iterable[Errors]) -> float:
    """Sum of errors over sum of counts. Raises ValueError where there is no reference token at all."""
    errors = list(errors)
    count = sum(e.count for e in errors)
    if not count:
        raise ValueError("an error rate needs at least one reference token: every reference text is empty")
    return sum(e.errors for e in errors) / count


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Step]:
    """The alignment behind ``count_errors``, one step per token pair, in order (for showing what went wrong)."""
    if not reference or not hypothesis:
        return [Step("delete", t, "") for t in reference] + [Step("insert", "", t) for t in hypothesis]
    steps = []
    for chunk in jiwer.process_words(*_as_sentences(reference, hypothesis)).alignments[0]:
        left = list(reference[chunk.ref_start_idx : chunk.ref_end_idx])
        right = list(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx])
        width = max(len(left), len(right))
        left += [""] * (width - len(left))
        right += [""] * (width - len(right))
        steps += [Step(chunk.type, a, b) for a, b in zip(left, right, strict=True)]
    return steps
