"""Words → phones in IPA: phonemizer over the espeak-ng library of the ``espeakng-loader`` wheel (GPL-3).

What languages need beyond it: Japanese is read into kana first (``japanese``). In Mandarin, Cantonese and Vietnamese
the tone is a token of its own behind its vowel, with espeak-ng's name for it: Chao's numbers in Mandarin ("55" high,
"35" rising, "214" low, "51" falling, "11" neutral), the tone's number elsewhere. espeak-ng's IPA shortens these names
to one sign, so that "55" and "51" were alike: they are taken from its mnemonics. Stress marks in Japanese, Mandarin and
Cantonese are a guess by other languages' rules and left out.
"""

from __future__ import annotations

import ctypes
import logging
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from vall_e.text import espeak
from vall_e.text.japanese import to_kana
from vall_e.text.scripts import unread_words

if TYPE_CHECKING:
    from phonemizer.backend import EspeakBackend

WORD_BREAK = " "
_PHONE_BREAK = "|"
_TONAL = ("cmn", "yue", "vi")
_UNSTRESSED = ("ja", "cmn", "yue")
_TONE = re.compile(r"\d+$")
_UTF8 = 1  # text mode of espeak_TextToPhonemes
_MNEMONICS = ord("_") << 8  # its phoneme mode: ASCII names with _ between them
_LATIN = re.compile("[a-z\u00c0-\u024f]", re.IGNORECASE)


class LanguageError(ValueError):
    """espeak-ng has no such language."""


@dataclass(frozen=True)
class Reading:
    """How a text is read.

    Attributes:
        phones: IPA, with ``" "`` between words; empty where the text has nothing to speak.
        foreign: words in Latin letters that espeak-ng reads by another language's rules (loan words, names).
        unread: words in letters that the language is not written in, or characters that espeak-ng does not know:
            it spells them by their names.
    """

    phones: list[str]
    foreign: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@cache
def _backend(language: str, with_stress: bool) -> EspeakBackend:
    # Every backend loads a copy of the library, which is never unloaded: one per language and process is kept.
    from phonemizer.backend import EspeakBackend

    known = espeak.languages()
    if language not in known:
        near = [code for code in sorted(known) if code.split("-")[0] == language.split("-")[0]]
        hint = f"did you mean {', '.join(near)}?" if near else "see https://github.com/espeak-ng/espeak-ng languages"
        raise LanguageError(f"espeak-ng does not speak {language!r}; {hint}")
    quiet = logging.getLogger("vall_e.phonemizer")
    quiet.setLevel(logging.ERROR)
    return EspeakBackend(
        language, with_stress=with_stress, language_switch="keep-flags", words_mismatch="ignore", logger=quiet
    )


def phonemize(
    texts: list[str], language: str = "en-us", with_stress: bool = True, words_apart: bool = False
) -> list[list[str]]:
    """Phone tokens of each text: the ``phones`` of ``read``, which has the same arguments.

    >>> phonemize(["seven two"])
    [['s', 'ˈɛ', 'v', 'ə', 'n', ' ', 't', 'ˈuː']]
    """
    return [reading.phones for reading in read(texts, language, with_stress, words_apart)]


def read(
    texts: list[str], language: str = "en-us", with_stress: bool = True, words_apart: bool = False
) -> list[Reading]:
    """How each text is read.

    Args:
        texts: normalised texts (``vall_e.text.normalize``), at most some sentences each.
        language: espeak-ng language, such as ``en-us``.
        with_stress: keep stress marks, in front of the vowel's token.
        words_apart: each word as if alone. In a sentence words change each other ("four eight" links its r): a model
            that learned from joined clips of single words never heard that.

    Raises:
        LanguageError: espeak-ng does not know the language.
    """
    if language == "ja":
        texts = [to_kana(text) for text in texts]
    with_stress = with_stress and language not in _UNSTRESSED
    if words_apart:
        words = sorted({word for text in texts for word in text.split()})
        alone = dict(zip(words, _spoken(words, language, with_stress), strict=True))
        said = [[alone[word] for word in text.split()] for text in texts]
        heard = [(_join([phones for phones, _ in row]), any(switched for _, switched in row)) for row in said]
    else:
        heard = _spoken(texts, language, with_stress)
    out = []
    for text, (phones, switched) in zip(texts, heard, strict=True):
        unread = unread_words(text, language)
        foreign: tuple[str, ...] = ()
        if switched:
            words = list(dict.fromkeys(text.split()))
            flags = [flag for _, flag in _spoken(words, language, with_stress)]
            strange = [word for word, flag in zip(words, flags, strict=True) if flag and word not in unread]
            foreign = tuple(word for word in strange if _LATIN.search(word))
            unread += tuple(word for word in strange if not _LATIN.search(word))
        out.append(Reading(phones, foreign, unread))
    return out


def _spoken(texts: list[str], language: str, with_stress: bool) -> list[tuple[list[str], bool]]:
    """Phones of each text, and whether espeak-ng left the language in it."""
    from phonemizer.separator import Separator

    out: list[tuple[list[str], bool]] = [([], False) for _ in texts]
    # A line of its own for each text: the phonemizer drops empty ones, so they are not handed to it.
    spoken = [index for index, text in enumerate(texts) if text.strip()]
    if not spoken:
        return out
    backend = _backend(language, with_stress)
    separator = Separator(phone=_PHONE_BREAK, syllable="", word="\n")
    said = [" ".join(texts[index].split()) for index in spoken]
    lines = backend.phonemize(said, separator=separator, strip=True, njobs=1)
    for index, text, line in zip(spoken, said, lines, strict=True):
        words = [[p for p in word.split(_PHONE_BREAK) if p.strip()] for word in line.split("\n")]
        if language in _TONAL:
            words = _with_tones(words, _mnemonics(backend, text))
        kept = [[phone for phone in word if not _is_flag(phone)] for word in words]
        out[index] = _join(kept), kept != words
    return out


def _is_flag(phone: str) -> bool:
    """``(en)``: from here on espeak-ng reads by the rules of another language."""
    return phone.startswith("(")


def _mnemonics(backend: EspeakBackend, text: str) -> list[str]:
    """espeak-ng's own names of the phones of ``text``, which phonemizer has no call for."""
    pointer, found = ctypes.pointer(ctypes.c_char_p(text.encode("utf-8"))), []
    while pointer.contents.value is not None:
        found.append((backend._espeak._espeak.text_to_phonemes(pointer, _UTF8, _MNEMONICS) or b"").decode())
    return [name for name in re.split(r"[_\s|]+", " ".join(found)) if name and name != ";"]


def _with_tones(words: list[list[str]], names: list[str]) -> list[list[str]]:
    """``words`` with the one sign of a tone at a phone's end replaced by a token, the digits at its name's end; nothing
    where espeak-ng does not name the phones that it says, so that a tone would be anybody's guess."""
    if sum(map(len, words)) != len(names):
        return []
    out, remaining, own = [], iter(names), True
    for word in words:
        phones: list[str] = []
        for phone, name in zip(word, remaining, strict=False):
            tone = _TONE.search(name)
            if _is_flag(phone):
                phones.append(phone)
                own = not own
            elif tone and own:
                phones.extend(part for part in (phone[:-1], tone[0]) if part)
            else:
                phones.append(phone)
        out.append(phones)
    return out


def _join(words: list[list[str]]) -> list[str]:
    """Phones of words, with a break between those that have any."""
    out: list[str] = []
    for phones in words:
        if phones:
            out.extend([WORD_BREAK, *phones] if out else phones)
    return out
