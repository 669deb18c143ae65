"""Japanese as it is written → kana as it is spoken, by pykakasi: what espeak-ng, which knows no kanji, can read.

pykakasi reads by the longest entry of its dictionary and knows no grammar: 入る is always いる, 日本 always にっぽん.
Words that it reads wrong in running text are mended here, and so is what kana do not say: particles (は is wa, へ is e)
and long vowels.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykakasi import kakasi

_PARTICLES = {"は": "わ", "へ": "え"} | {
    p: p for p in ("を", "が", "の", "に", "で", "と", "も", "か", "や", "ね", "よ", "から")
}
# 今日は is a greeting only in kana; 人 alone is no counter.
_READINGS = {
    "今日は": ("きょう", "わ"), "今年": ("ことし",), "人": ("ひと",), "十分": ("じゅっぷん",), "一分": ("いっぷん",)
}  # fmt: skip
_AFTER_TEN = {"分": "ぷん", "本": "ぽん", "回": "かい", "歳": "さい"}
_KANA = re.compile(r"[ぁ-ゖー]+")
_KANJI = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff々]")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_LONG = re.compile(r"(?<=[おこそとのほもよろごぞどぼぽょぉうくすつぬふむゆるぐずづぶぷゅぅ])う")


@cache
def _reader() -> kakasi:
    from pykakasi import kakasi

    return kakasi()


def to_kana(text: str) -> str:
    """``text`` in hiragana, words apart; Latin letters stay, and so do kanji that pykakasi does not know.

    >>> to_kana("今日は東京へ行こう")
    'きょう わ とーきょー え いこー'
    """
    return " ".join(word for part in _SELECTORS.sub("", text).split() for word in _words(part))


def _words(part: str) -> list[str]:
    try:
        tokens = [(token["orig"], token["hira"]) for token in _reader().convert(part)]
    except IndexError:  # a sign that its tables have no place for
        return [part]
    if "".join(orig for orig, _ in tokens) != part:  # it leaves out kanji beyond the basic plane
        return [part]
    words: list[str] = []
    for index, (orig, hira) in enumerate(tokens):
        hira = hira or orig
        if words and orig == "う":
            words[-1] += "ー"
        elif orig in _READINGS:
            words.extend(_LONG.sub("ー", reading) for reading in _READINGS[orig])
        elif words and orig in _AFTER_TEN and words[-1].endswith("じゅー"):
            words[-1] = words[-1].removesuffix("ー") + "っ" + _AFTER_TEN[orig]
        elif index and orig in _PARTICLES:
            words.append(_PARTICLES[orig])
        elif words and _KANA.fullmatch(orig) and _KANA.fullmatch(tokens[index - 1][1]) and orig[0] not in "おご":
            words[-1] += _long(orig, hira)
        else:
            words.append(_long(orig, hira))
    return words


def _long(orig: str, hira: str) -> str:
    """Kana with long vowels marked: おう is ō, but for the う that a verb ends in (思う); a topic's は is わ."""
    if _KANA.fullmatch(orig) and len(orig) > 1 and orig[-1] == "は" and orig != "はは":
        hira = hira[:-1] + "わ"
    if orig.endswith("う") and _KANJI.search(orig):
        return _LONG.sub("ー", hira[:-1]) + "う"
    return _LONG.sub("ー", hira)
