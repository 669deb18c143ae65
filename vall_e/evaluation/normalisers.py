"""Named ways of turning what was to be said, and what was heard, into the words that error rates compare.

A rate without its normaliser's name means little: "It's 5 pm" against "its five p m" is no error, one, or three.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

from vall_e.evaluation.error_rates import word_errors
from vall_e.text.normalize import base_language, words_for_scoring

# Written without spaces between words: Whisper's authors compare characters there (2212.04356, appendix C).
_LETTERS = ("cmn", "zh", "yue", "ja", "th", "lo", "my", "km")
ABOUT = {
    "spoken": "the normaliser of training texts: lower case, numbers and signs as words of the language, "
    "no apostrophes; digits that the recogniser wrote are read the way that is nearer to the text; letters are the "
    "words of languages without spaces",
    "whisper": "Whisper's English normaliser (contractions and titles in full, numbers as digits, fillers dropped), "
    "for other languages its basic one (2212.04356, appendix C)",
    "none": "as written, split at spaces: case and punctuation count",
}


class NormaliserError(ValueError):
    """``evaluate.spellings`` cannot be read."""


class Normaliser:
    """One way of comparing.

    Args:
        name: a key of ``ABOUT``.
        spellings: ``normalizer.json`` of a Whisper tokenizer (British → American), which the library does not bring;
            without it ``whisper`` takes "colour" and "color" for two words.

    Raises:
        NormaliserError: ``spellings`` is no such file.
    """

    def __init__(self, name: str, spellings: str | Path | None = None) -> None:
        self.name = name
        self._spellings = None if spellings is None else str(spellings)
        if self._spellings is not None:
            _spellings(self._spellings)

    def splits(self, language: str) -> bool:
        """Whether letters are compared in place of words, for the language puts no spaces between words."""
        return self.name != "none" and base_language(language) in _LETTERS

    def words(self, written: str, heard: str, language: str) -> tuple[list[str], list[str]]:
        """The words of the reference and of the hypothesis.

        Args:
            written: the text as it was given.
            heard: what the recogniser wrote.
            language: espeak-ng's or BCP-47 name.
        """
        if self.name == "none":
            return written.split(), heard.split()
        if self.name == "whisper":
            rule = _whisper(base_language(language), self._spellings)
            return rule(written).split(), rule(heard).split()
        reference = words_for_scoring(written, language)
        words = read_hypothesis(heard, language, reference)
        return (_letters(reference), _letters(words)) if self.splits(language) else (reference, words)


def read_hypothesis(text: str, language: str, reference: list[str]) -> list[str]:
    """The words of what a recogniser wrote, for the normaliser ``spoken``.

    It may write "739" for "seven three nine" as well as for "seven hundred thirty-nine": the reading that is
    nearer to the reference counts, for model, codec copy and recording alike.
    """
    words = words_for_scoring(text, language)
    if not any(c.isdigit() for c in text):
        return words
    apart = words_for_scoring(text, language, digits_apart=True)
    split = _letters if base_language(language) in _LETTERS else list
    return min((words, apart), key=lambda reading: word_errors(split(reference), split(reading)).errors)


def _letters(words: list[str]) -> list[str]:
    """Every letter apart, with the marks that belong to it."""
    letters: list[str] = []
    for letter in "".join(words):
        if letters and unicodedata.category(letter).startswith("M"):
            letters[-1] += letter
        else:
            letters.append(letter)
    return letters


@cache
def _whisper(language: str, spellings: str | None) -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if language == "en":
        return EnglishTextNormalizer(_spellings(spellings) if spellings else {})
    return BasicTextNormalizer(split_letters=language in _LETTERS)


@cache
def _spellings(path: str) -> dict[str, str]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NormaliserError(f"evaluate.spellings {path} cannot be read ({error}): name normalizer.json of a Whisper "
                              "tokenizer, or null") from None  # fmt: skip
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise NormaliserError(f"evaluate.spellings {path} maps no words to words: name normalizer.json of a Whisper "
                              "tokenizer, or null")  # fmt: skip
    return found
