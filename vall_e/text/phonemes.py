"""Words → phones in IPA: phonemizer over the espeak-ng library of the ``espeakng-loader`` wheel (GPL-3)."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from vall_e.text import espeak

if TYPE_CHECKING:
    from phonemizer.backend import EspeakBackend

WORD_BREAK = " "
_PHONE_BREAK = "|"


class LanguageError(ValueError):
    """espeak-ng has no such language."""


@lru_cache(maxsize=8)
def _backend(language: str, with_stress: bool) -> EspeakBackend:
    # Every backend loads a copy of the library, so that one per language and process is kept.
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeak.library())
    EspeakWrapper.set_data_path(espeak.data_path())
    known = EspeakBackend.supported_languages()
    if language not in known:
        near = [code for code in sorted(known) if code.split("-")[0] == language.split("-")[0]]
        hint = f"did you mean {', '.join(near)}?" if near else "see https://github.com/espeak-ng/espeak-ng languages"
        raise LanguageError(f"espeak-ng does not speak {language!r}; {hint}")
    quiet = logging.getLogger("vall_e.phonemizer")
    quiet.setLevel(logging.ERROR)
    return EspeakBackend(
        language, with_stress=with_stress, language_switch="remove-flags", words_mismatch="ignore", logger=quiet
    )


def phonemize(
    texts: list[str], language: str = "en-us", with_stress: bool = True, words_apart: bool = False
) -> list[list[str]]:
    """Phone tokens of each text.

    Args:
        texts: normalised texts (``vall_e.text.normalize``), at most some sentences each.
        language: espeak-ng language, such as ``en-us``.
        with_stress: keep stress marks, in front of the vowel's token.
        words_apart: each word as if alone. In a sentence words change each other ("four eight" links its r): a model
            that learned from joined clips of single words never heard that.

    Returns:
        For each text its phones, with ``" "`` between words; empty where the text has nothing to speak.

    Raises:
        LanguageError: espeak-ng does not know the language.

    >>> phonemize(["seven two"])
    [['s', 'ˈɛ', 'v', 'ə', 'n', ' ', 't', 'ˈuː']]
    """
    from phonemizer.separator import Separator

    if not texts:
        return []
    if words_apart:
        words = sorted({word for text in texts for word in text.split()})
        alone = dict(zip(words, phonemize(words, language, with_stress), strict=True))
        return [_join([alone[word] for word in text.split()]) for text in texts]
    backend = _backend(language, with_stress)
    separator = Separator(phone=_PHONE_BREAK, syllable="", word="\n")
    # A line of its own for each text: the phonemizer drops empty ones, so they are not handed to it.
    spoken = [index for index, text in enumerate(texts) if text.strip()]
    said = [" ".join(texts[index].split()) for index in spoken]
    lines = backend.phonemize(said, separator=separator, strip=True, njobs=1)
    out: list[list[str]] = [[] for _ in texts]
    for index, line in zip(spoken, lines, strict=True):
        out[index] = _join([[p for p in word.split(_PHONE_BREAK) if p.strip()] for word in line.split("\n")])
    return out


def _join(words: list[list[str]]) -> list[str]:
    """Phones of words, with a break between those that have any."""
    out: list[str] = []
    for phones in words:
        if phones:
            out.extend([WORD_BREAK, *phones] if out else phones)
    return out
