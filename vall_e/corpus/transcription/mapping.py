"""A text that came with a long recording, found again in what was recognised there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vall_e.corpus.transcription.languages import units
from vall_e.evaluation.error_rates import align
from vall_e.text.normalize import words_for_scoring


@dataclass(frozen=True)
class Mapping:
    """Given words beside recognised ones.

    ``sure[k]``: a cut behind recognised word k is between two words that both sides agree on; ``until[k]`` is then the
    number of given words before it. ``agreed`` holds the indices of given words that were recognised. ``ends``: both
    sides agree on the first word, and on the last: else nobody knows where in the recording the text begins or ends.
    """

    given: tuple[str, ...]
    sure: tuple[bool, ...]
    until: tuple[int, ...]
    agreed: frozenset[int]
    ends: tuple[bool, bool]

    def share(self, first: int, last: int) -> float:
        """The share of the given words ``first``..``last`` that were recognised, 0..1."""
        return sum(k in self.agreed for k in range(first, last)) / max(1, last - first)


def map_text(text: str, recognised: Sequence[str], language: str, spaced: bool = True) -> Mapping:
    """Lay the words of ``text`` beside the recognised ones, by the fewest errors between their normalised forms.

    Args:
        text: what came with the recording.
        recognised: words in order.
        language: espeak-ng language, for normalisation.
        spaced: the language puts spaces between words.
    """
    given = units(text, spaced)
    wanted, givers = _tokens(given, language)
    heard, hearers = _tokens(recognised, language)
    partner = [-1] * len(heard)  # index of the wanted token that a heard token equals
    left = right = 0
    for step in align(wanted, heard):
        if step.kind == "equal":
            partner[right] = left
        left += step.kind != "insert" and step.reference != ""
        right += step.kind != "delete" and step.hypothesis != ""
    sure, until = [False] * len(recognised), [0] * len(recognised)
    for token in range(len(heard) - 1):
        here, after = partner[token], partner[token + 1]
        if hearers[token] == hearers[token + 1] or here < 0 or after != here + 1 or givers[here] == givers[after]:
            continue
        sure[hearers[token]], until[hearers[token]] = True, givers[after]
    agreed = frozenset(givers[token] for token in partner if token >= 0)
    ends = (partner[0] == 0, partner[-1] == len(wanted) - 1) if partner else (False, False)
    return Mapping(tuple(given), tuple(sure), tuple(until), agreed, ends)


def _tokens(words: Sequence[str], language: str) -> tuple[list[str], list[int]]:
    """Normalised words, and from which word each is."""
    tokens: list[str] = []
    owners: list[int] = []
    for index, word in enumerate(words):
        for token in words_for_scoring(word, language):
            tokens.append(token)
            owners.append(index)
    return tokens, owners
