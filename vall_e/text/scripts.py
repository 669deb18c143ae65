"""Which letters a language is written in: espeak-ng spells others by their names ("Cyrillic letter ...")."""

from __future__ import annotations

import unicodedata
from functools import cache

from vall_e.text.normalize import base_language

# Languages of espeak-ng that are not in Latin letters, which all of them can switch to.
_SCRIPTS = {
    "ARABIC": "ar fa sd ug ur", "ARMENIAN": "hy hyw", "BENGALI": "as bn bpy", "CJK": "cmn yue zh",
    "CYRILLIC": "ba be bg bs cv kk ky mk nog ru sr tt uk", "DEVANAGARI": "hi kok mr ne", "ETHIOPIC": "am ti",
    "GEORGIAN": "ka", "GREEK": "el grc", "GUJARATI": "gu", "GURMUKHI": "pa", "HANGUL": "ko", "HEBREW": "he",
    "HIRAGANA": "ja", "KANNADA": "kn", "KATAKANA": "ja", "MALAYALAM": "ml", "MYANMAR": "my shn", "ORIYA": "or",
    "SINHALA": "si", "TAMIL": "ta", "TELUGU": "te", "THAI": "th",
}  # fmt: skip
_JUDGED = frozenset(_SCRIPTS) | {"LATIN"}
# Scripts of their own, or several.
_ANY = frozenset(("chr-US-Qaaa-x-west", "fa-latn", "hak", "en-shaw", "kaa", "piqd", "qdb", "qya", "sjn"))


def unread_words(text: str, language: str) -> tuple[str, ...]:
    """Words of ``text`` with letters that ``language`` is not written in, nor in Latin ones; once each, in order.

    A single Greek letter has a name in every language.

    >>> unread_words("привет my friend", "en-us")
    ('привет',)
    """
    if language in _ANY or text.isascii():
        return ()
    own = _own(base_language(language))
    found = []
    for word in text.split():
        foreign = [script for script in map(_script, word) if script in _JUDGED and script not in own]
        if foreign and foreign != ["GREEK"]:
            found.append(word)
    return tuple(dict.fromkeys(found))


@cache
def _own(base: str) -> frozenset[str]:
    return frozenset(script for script, languages in _SCRIPTS.items() if base in languages.split()) | {"LATIN"}


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0] if letter.isalpha() else ""
