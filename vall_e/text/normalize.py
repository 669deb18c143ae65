"""Written text → spoken words: what the phonemizer reads and what error rates compare.

The result is lower-case words with one space between them: no punctuation, no digits, no symbols.
Apostrophes inside words stay. Numbers become words in the text's language (num2words).
"""

from __future__ import annotations

import re
import unicodedata

_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ`´＇"), "'")
_ABBREVIATIONS = {
    "mr": "mister",
    "mrs": "missus",
    "ms": "miz",
    "dr": "doctor",
    "prof": "professor",
    "vs": "versus",
    "etc": "et cetera",
    "jr": "junior",
    "sr": "senior",
    "capt": "captain",
    "col": "colonel",
    "gen": "general",
}
_SYMBOLS = {"en": {"&": "and", "+": "plus", "=": "equals", "@": "at", "%": "percent", "°": "degrees"}}
_CURRENCY = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
_LONGEST_NUMBER = 15

_ABBREVIATION = re.compile(r"\b(" + "|".join(_ABBREVIATIONS) + r")\.", re.IGNORECASE)
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:[,.'\u00a0\u202f]\d{3})+(?![\d])")
_MONEY = re.compile(r"([$£€])\s?(\d+)(?:\.(\d{2})(?!\d))?")
_CLOCK = re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)\b")
_ORDINAL = re.compile(r"\b(\d{1,15})(?:st|nd|rd|th)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])([-−])?(\d+)(?:([.,])(\d+))?")
_DIGITS = re.compile(r"\d")


def _base(language: str) -> str:
    return re.split(r"[-_]", language)[0].lower()


def _spoken(number: int, language: str, **how: str) -> str:
    from num2words import num2words

    try:
        return num2words(number, lang=language, **how)
    except (NotImplementedError, OverflowError, TypeError):
        # A language that num2words does not know: espeak-ng reads the digits, kept apart, by itself.
        return " ".join(str(number))


def _apart(digits: str, language: str) -> str:
    return " ".join(_spoken(int(d), language) for d in digits)


def _integer(digits: str, language: str) -> str:
    # Phone numbers, codes and "007" are read digit by digit.
    if len(digits) > _LONGEST_NUMBER or (len(digits) > 1 and digits[0] == "0"):
        return _apart(digits, language)
    value = int(digits)
    if language == "en" and len(digits) == 4 and (1100 <= value <= 1999 or 2010 <= value <= 2099):
        return _spoken(value, language, to="year")
    return _spoken(value, language)


def _number(match: re.Match[str], language: str) -> str:
    sign, whole, mark, fraction = match.groups()
    words = _integer(whole, language)
    if fraction is not None:
        decimal_mark = "." if language == "en" else ","
        if mark == decimal_mark:
            point = {"en": "point", "de": "komma", "fr": "virgule", "es": "coma", "it": "virgola"}.get(language, " ")
            words = f"{words} {point} {_apart(fraction, language)}"
        else:
            words = f"{words} {_integer(fraction, language)}"
    return f" {'minus ' if sign and language == 'en' else ''}{words} "


def _money(match: re.Match[str]) -> str:
    (unit, small), whole, cents = _CURRENCY[match[1]], int(match[2]), int(match[3] or 0)
    plural = {"penny": "pence"}.get(small, small + "s")
    words = f"{_spoken(whole, 'en')} {unit if whole == 1 else unit + 's'}"
    if cents:
        words += f" and {_spoken(cents, 'en')} {small if cents == 1 else plural}"
    return f" {words} "


def _clock(match: re.Match[str]) -> str:
    hour, minute = int(match[1]), match[2]
    if minute == "00":
        return f" {_spoken(hour, 'en')} o'clock "
    tail = f"oh {_spoken(int(minute), 'en')}" if minute[0] == "0" else _spoken(int(minute), "en")
    return f" {_spoken(hour, 'en')} {tail} "


def normalize(text: str, language: str = "en-us", *, digits_apart: bool = False) -> str:
    """Lower-case words of ``text`` as they are spoken, one space apart; empty where nothing can be spoken.

    Args:
        text: any text; compatibility forms are folded (Unicode NFKC).
        language: espeak-ng or BCP-47 language, such as ``en-us`` or ``de``.
        digits_apart: read every digit by itself ("739" → "seven three nine").

    >>> normalize("In 1455, Mr. Smith paid $2.50 for 12 books!")
    'in fourteen fifty five mister smith paid two dollars and fifty cents for twelve books'
    """
    base = _base(language)
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    if base == "en":
        text = _ABBREVIATION.sub(lambda m: _ABBREVIATIONS[m[1].lower()], text)
    # Digits of every script count: Unicode knows their values.
    text = "".join(str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c for c in text)
    if digits_apart:
        text = _DIGITS.sub(lambda m: f" {_spoken(int(m[0]), base)} ", text)
    elif _DIGITS.search(text):
        if base == "en":
            text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
            text = _MONEY.sub(_money, text)
            text = _CLOCK.sub(_clock, text)
            text = _ORDINAL.sub(lambda m: f" {_spoken(int(m[1]), base, to='ordinal')} ", text)
        else:
            text = _GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
        text = _NUMBER.sub(lambda m: _number(m, base), text)
        # Digits inside words and codes: "b2b", "mp3".
        text = re.sub(r"\d+", lambda m: f" {_integer(m[0], base)} ", text)
    for symbol, word in _SYMBOLS.get(base, {}).items():
        text = text.replace(symbol, f" {word} ")
    text = text.lower()
    kept = (c if c.isalnum() or c == "'" or unicodedata.category(c).startswith("M") else " " for c in text)
    words = ("".join(kept)).split()
    return " ".join(word for word in (w.strip("'") for w in words) if word)


def words_for_scoring(text: str, language: str = "en-us", *, digits_apart: bool = False) -> list[str]:
    """The words that error rates compare: normalised, without apostrophes ("it's" = "its").

    Args:
        text: reference or hypothesis.
        language: as in ``normalize``.
        digits_apart: read digits one by one, as a recogniser that writes "739" for three spoken digits means it.
    """
    return normalize(text, language, digits_apart=digits_apart).replace("'", "").split()
