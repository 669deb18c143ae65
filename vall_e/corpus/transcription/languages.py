"""What differs between languages: Whisper's codes and espeak-ng's, and whether words have spaces between them."""

from __future__ import annotations

from collections.abc import Sequence

from vall_e.text.codes import espeak_name

_WHISPER = {"cmn": "zh", "nb": "no"}


def espeak_language(code: str, expected: str) -> str | None:
    """The espeak-ng language of Whisper's ``code``: ``expected`` where that is a form of it (en-gb of en), else its
    usual one, or None where espeak-ng does not know it."""
    usual = espeak_name(code)
    base = expected.split("-")[0]
    return expected if base == code or (usual is not None and base == usual.split("-")[0]) else usual


def whisper_language(language: str) -> str:
    """Whisper's code of an espeak-ng language."""
    base = language.split("-")[0]
    return _WHISPER.get(base, base)


def units(text: str, spaced: bool) -> list[str]:
    """The words of ``text``, or its characters where a language writes no spaces."""
    return text.split() if spaced else [c for c in text if not c.isspace()]


def join(words: Sequence[str], spaced: bool) -> str:
    """The reverse of ``units``, with one space between words."""
    return (" " if spaced else "").join(words)
