"""Written forms → words by wetext (WeTextProcessing), whose transducers for English, Chinese and Japanese are in its
wheel. A language's are loaded at the first use, once in a process."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wetext import Normalizer

LANGUAGES = ("en", "zh", "ja")


@cache
def _normalizer(language: str) -> Normalizer:
    from wetext import Normalizer

    return Normalizer(lang=language)


def verbalize(text: str, language: str) -> str:
    """``text`` with its written forms as words.

    wetext stops at characters that are not in its transducers (µ, emoji): only the words with them stay as they are.

    Args:
        language: one of ``LANGUAGES``.

    >>> verbalize("5 km/h", "en")
    'five kilometers per hour'
    """
    try:
        return _normalizer(language).normalize(text)
    except AssertionError:
        parts = text.split()
        return text if len(parts) < 2 else " ".join(verbalize(part, language) for part in parts)
