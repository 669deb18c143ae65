"""Ids of what is to be said; where a voice never heard a sound of it, the words that have that sound."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vall_e.generation.loaded import STRESS, LoadedVoice
from vall_e.text.normalize import normalize
from vall_e.text.phonemes import phonemize
from vall_e.text.tokenizer import UnknownPhoneError

NAMED = 6  # words in a message


def known_ids(voice: LoadedVoice, phones: Sequence[str], text: str, language: str, where: str = "") -> np.ndarray:
    """Token ids int64 [S] of the ``phones`` of a ``text``.

    Args:
        where: the text stands, for the error.

    Raises:
        UnknownPhoneError: sounds that the model never saw, with the words that have them.
    """
    try:
        return voice.ids(phones)
    except UnknownPhoneError as error:
        unheard = {phone.lstrip(STRESS) for phone in set(phones) if not _heard(voice, phone)}
        raise UnknownPhoneError(where + (_strange(voice, unheard, text, language) or str(error))) from None


def _heard(voice: LoadedVoice, phone: str) -> bool:
    try:
        voice.ids([phone])
    except UnknownPhoneError:
        return False
    return True


def _strange(voice: LoadedVoice, unheard: set[str], text: str, language: str) -> str:
    """What words of ``text`` have sounds among ``unheard``; empty if none has one when said alone."""
    words = list(dict.fromkeys(normalize(text, language).split()))
    alone = phonemize(words, language, voice.config.with_stress, voice.config.words_apart)
    found = []
    for word, phones in zip(words, alone, strict=True):
        sounds = list(dict.fromkeys(p for p in phones if p.lstrip(STRESS) in unheard and not _heard(voice, p)))
        if sounds:
            plural = "s" if len(sounds) > 1 else ""
            found.append(f"{word!r}{_written(word, text, language)} has the sound{plural} {' '.join(sounds)}")
    if not found:
        return ""
    more = f" and {len(found) - NAMED} more words have others" if len(found) > NAMED else ""
    named = ", ".join(found[:NAMED]) + more
    return f"{named}, which this voice never heard: use other words, or train it on texts with such sounds"


def _written(word: str, text: str, language: str) -> str:
    """`` (of '12345')`` for a word that the text has in another form."""
    for token in text.split():
        if word in normalize(token, language).split():
            same = re.sub(r"\W", "", token).casefold() == re.sub(r"\W", "", word).casefold()
            return "" if same else f" (of {token.strip('.,;:!?…()“”')!r})"
    return ""
