"""Written text → spoken words: what the phonemizer reads and what error rates compare.

The result is lower-case words with one space between them: no punctuation, no digits, no symbols. Apostrophes inside
words stay. English, Chinese and Japanese go through wetext (``transducers``) with rules of ours for what it reads
unlike people (``english``); numbers of other languages through num2words, with what those write around them
(``languages``). A text without digits, signs and abbreviations is not touched by any of them.
"""

from __future__ import annotations

import re
import unicodedata

from vall_e.text import english, languages
from vall_e.text.numerals import apart, integer, spoken
from vall_e.text.transducers import verbalize

_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ`´＇"), "'")
_NUMBER = re.compile(r"(?<![\w.])([-−])?(\d+)(?:([.,])(\d+))?")
_GROUP_SPACE = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_HALF = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_DIGITS = re.compile(r"\d")
_SIGNS = re.compile(r"[\d%@&+=°℃$£€¥]")
# wetext's name of a language that espeak-ng calls otherwise.
_WHOLE_TEXTS = {"cmn": "zh", "zh": "zh", "ja": "ja"}


def base_language(language: str) -> str:
    """First part of a language's name: ``en`` of ``en-us``."""
    return re.split(r"[-_]", language)[0].lower()


def _number(match: re.Match[str], language: str) -> str:
    sign, whole, mark, fraction = match.groups()
    row = languages.TABLE.get(language)
    minus = "minus" if language == "en" else row.minus if row else ""
    words = integer(whole, language)
    if fraction is not None and mark == ("." if language == "en" else ","):
        point = f"{words} point {apart(fraction, language)}"
        words = point if language == "en" else languages.decimal(whole, fraction, language)
    elif fraction is not None:
        words = f"{words} {integer(fraction, language)}"
    return f" {minus if sign else ''} {words} "


def normalize(text: str, language: str = "en-us", *, digits_apart: bool = False) -> str:
    """Lower-case words of ``text`` as they are spoken, one space apart; empty where nothing can be spoken.

    Args:
        text: any text; compatibility forms are folded (Unicode NFKC).
        language: espeak-ng or BCP-47 language, such as ``en-us`` or ``de``.
        digits_apart: read every digit by itself ("739" → "seven three nine").

    >>> normalize("In 1455, Mr. Smith paid $2.50 for 12 books!")
    'in fourteen fifty five mister smith paid two dollars and fifty cents for twelve books'
    """
    base = base_language(language)
    # What NFKC would blur: "1 000" with a narrow space is one number, "2½" is not 21⁄2.
    text = _HALF.sub(" ", _GROUP_SPACE.sub("", text.translate(_APOSTROPHES)))
    text = unicodedata.normalize("NFKC", text)
    # Digits of every script count: Unicode knows their values.
    text = "".join(str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c for c in text)
    if digits_apart:
        text = _DIGITS.sub(lambda m: f" {_digit(m[0], base)} ", text)
    if base in _WHOLE_TEXTS:
        if _SIGNS.search(text):
            text = verbalize(text, _WHOLE_TEXTS[base])
    else:
        text = english.words(text) if base == "en" else languages.words(text, base)
    if _DIGITS.search(text):
        text = _NUMBER.sub(lambda m: _number(m, base), text)
        # Digits inside words and codes: "b2b", "mp3".
        text = re.sub(r"\d+", lambda m: f" {integer(m[0], base)} ", text)
    if base == "en":
        text = english.symbols(text)
    text = text.lower()
    kept = (c if c.isalnum() or c == "'" or unicodedata.category(c).startswith("M") else " " for c in text)
    words = ("".join(kept)).split()
    return " ".join(word for word in (w.strip("'") for w in words) if word)


def _digit(digit: str, base: str) -> str:
    return verbalize(digit, _WHOLE_TEXTS[base]) if base in _WHOLE_TEXTS else spoken(int(digit), base)


def words_for_scoring(text: str, language: str = "en-us", *, digits_apart: bool = False) -> list[str]:
    """The words that error rates compare: normalised, without apostrophes ("it's" = "its").

    Args:
        text: reference or hypothesis.
        language: as in ``normalize``.
        digits_apart: read digits one by one, as a recogniser that writes "739" for three spoken digits means it.
    """
    return normalize(text, language, digits_apart=digits_apart).replace("'", "").split()
