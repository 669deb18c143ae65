"""Texts that a recogniser made up: loops, phrases that it learned from subtitles, figures that say so themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vall_e.config import read_yaml
from vall_e.corpus.quality import Fault
from vall_e.preparation import HallucinationConfig
from vall_e.text.normalize import words_for_scoring

_PHRASES = Path(__file__).with_name("phrases.yaml")
_LONGEST_NGRAM = 12


@dataclass(frozen=True)
class Evidence:
    """What the recogniser says of an utterance; None for what is not known."""

    seconds: float
    no_speech: float | None
    log_prob: float | None
    compression: float | None


def invented(text: str, language: str, evidence: Evidence, config: HallucinationConfig) -> Fault | None:
    """The first rule that a recognised text breaks: rule, what was found, what is allowed; None for a good text."""
    words = words_for_scoring(text, language)
    gram, count = longest_loop(words)
    if count > config.max_repeats:
        return "loop", f"{' '.join(gram)!r} {count} times in a row", f"{config.max_repeats}"
    if config.phrases and (phrase := listed_phrase(words, language)):
        return "phrase", f"{text!r} is {phrase!r}", "a list of inventions"
    low, high = config.chars_per_second
    rate = sum(map(len, words)) / max(evidence.seconds, 1e-3)
    if not low <= rate <= high:
        return "chars_per_second", f"{rate:.1f}: {text!r} in {evidence.seconds:.2f} s", f"{low:g} to {high:g}"
    if evidence.compression is not None and evidence.compression > config.max_compression:
        return "compression", f"{evidence.compression:.2f}: {text!r}", f"{config.max_compression:g}"
    if evidence.no_speech is not None and evidence.no_speech > config.max_no_speech:
        return "no_speech_probability", f"{evidence.no_speech:.2f}: {text!r}", f"{config.max_no_speech:g}"
    if evidence.log_prob is not None and evidence.log_prob < config.min_log_prob:
        return "log_probability", f"{evidence.log_prob:.2f}: {text!r}", f"{config.min_log_prob:g}"
    return None


def longest_loop(words: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The n-gram, n up to 12, that stands most often in a row, and how often.

    >>> longest_loop("and so on and so on and so on".split())
    (('and', 'so', 'on'), 3)
    """
    best: tuple[tuple[str, ...], int] = ((), 0)
    for n in range(1, min(_LONGEST_NGRAM, len(words)) + 1):
        run = 0
        for k in range(n, len(words)):
            run = run + 1 if words[k] == words[k - n] else 0
            count = run // n + 1
            if run >= n and count > best[1]:
                best = tuple(words[k - n + 1 : k + 1]), count
        if not best[1]:
            best = tuple(words[:1]), 1
    return best


def listed_phrase(words: Sequence[str], language: str) -> str | None:
    """The listed phrase of which a text is made throughout, once or more, or that is in it anywhere."""
    base = language.split("-")[0]
    alone, anywhere = _phrases(base)
    said = " ".join(words)
    for phrase in alone:
        size = len(phrase.split())
        if words and len(words) % size == 0 and said == " ".join([phrase] * (len(words) // size)):
            return phrase
    return next((phrase for phrase in anywhere if f" {phrase} " in f" {said} "), None)


@cache
def _phrases(language: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Normalised phrases of a language and of all: those that are a whole text, and those in any place."""
    listed = read_yaml(_PHRASES)
    sides: list[tuple[str, ...]] = []
    for kind in ("alone", "anywhere"):
        found = listed.get(language, {}).get(kind, []) + listed["any"].get(kind, [])
        sides.append(tuple(" ".join(words_for_scoring(phrase, language)) for phrase in found))
    return sides[0], sides[1]
