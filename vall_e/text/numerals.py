"""Numbers as words of a language, by num2words; digits one by one where that is how they are read."""

from __future__ import annotations

from typing import Any

LONGEST_NUMBER = 15  # digits


def spoken(number: float, language: str, **how: Any) -> str:
    """Words of ``number``; its digits, kept apart, in a language that num2words does not know or cannot do this in.

    Args:
        language: its first part, such as ``en``.
        how: of ``num2words.num2words``: ``to`` is year, ordinal or currency.

    >>> spoken(21, "fr")
    'vingt et un'
    """
    from num2words import num2words

    try:
        return num2words(number, lang=language, **how)
    except (NotImplementedError, OverflowError, TypeError, ValueError, AttributeError, IndexError):
        # Each language of num2words lacks something else, and says so with an exception of its own.
        return " ".join(str(number)) if how == {} else ""


def apart(digits: str, language: str) -> str:
    """Each digit by itself: "42" → "four two"."""
    return " ".join(spoken(int(digit), language) for digit in digits)


def cardinal(digits: str, language: str) -> str:
    """A whole number, digit by digit where it is longer than anybody reads."""
    return apart(digits, language) if len(digits) > LONGEST_NUMBER else spoken(int(digits), language)


def integer(digits: str, language: str) -> str:
    """A whole number as it is read; phone numbers, codes and "007" digit by digit."""
    if len(digits) > LONGEST_NUMBER or (len(digits) > 1 and digits[0] == "0"):
        return apart(digits, language)
    value = int(digits)
    if language == "en" and len(digits) == 4 and (1100 <= value <= 1999 or 2010 <= value <= 2099):
        return spoken(value, language, to="year")
    if language == "de" and len(digits) == 4 and 1100 <= value <= 1999:
        return spoken(value, language, to="year")
    return spoken(value, language)
