"""Transcripts as they come: bytes or strings of any kind → one line of text, None for nothing, or an error."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vall_e.corpus.names import spellings

_SIDECARS = (".txt", ".lab")
_LONGEST_FILE = 4_000_000  # bytes: some tens of hours of speech
_MOST_CONTROLS = 0.5
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0), 0xFEFF) if not chr(code).isspace()}


class TextError(ValueError):
    """A transcript cannot be used; rule, value and threshold are the reject's."""

    def __init__(self, rule: str, value: str, threshold: str | None = None) -> None:
        super().__init__(value)
        self.rule, self.threshold = rule, threshold


def decoded(raw: bytes, name: str) -> str:
    """UTF-8, with or without a byte order mark, or UTF-16 with one. Raises TextError for anything else."""
    try:
        if raw.startswith(_UTF_16):
            return raw.decode("utf-16")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{name}: not {error.encoding.upper()} at byte {error.start}"
        raise TextError("text_encoding", reason, "UTF-8") from None


def cleaned(text: str, name: str) -> str | None:
    """``text`` in one line, without control characters.

    Raises:
        TextError: zero bytes or lone surrogates, which no text has, or more than half is control characters.
    """
    if "\0" in text:
        reason = f"{name}: has zero bytes, perhaps UTF-16 without its mark; save it as UTF-8"
        raise TextError("text_encoding", reason, "UTF-8")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise TextError("text_encoding", f"{name}: has bytes or halves of characters that are no text", "UTF-8")
    kept = text.translate(_CONTROLS)
    removed = len(text.removeprefix("\ufeff")) - len(kept)
    if removed > _MOST_CONTROLS * len(text):
        reason = f"{name}: {removed} of {len(text)} characters are control characters"
        raise TextError("text_control_characters", reason, f"a share of {_MOST_CONTROLS:g}")
    return " ".join(kept.split()) or None


def read_text(path: Path) -> str | None:
    """The text in a file. Raises TextError where it cannot be used."""
    with _readable(path):
        size = path.stat().st_size
        if size > _LONGEST_FILE:
            raise TextError("text_too_long", f"{path.name}: {size} bytes", f"{_LONGEST_FILE} bytes")
        return cleaned(decoded(path.read_bytes(), path.name), path.name)


def read_lines(path: Path) -> list[bytes]:
    """Lines of a table of texts, in UTF-8 or what is wrong with them: UTF-16 is converted, byte order marks are gone.

    Raises:
        TextError: it cannot be opened, or has the mark of UTF-16 and is none.
    """
    with _readable(path):
        raw = path.read_bytes()
    if raw.startswith(_UTF_16):
        raw = decoded(raw, path.name).encode()
    return raw.removeprefix(codecs.BOM_UTF8).splitlines()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TextError("unreadable_text", f"{path.name}: {error.strerror}") from None


def sidecar(path: Path, endings: tuple[str, ...] = _SIDECARS) -> str | None:
    """The text beside a recording: in the first file of the same name with one of ``endings`` that is not blank.

    ``A.TXT`` is beside ``A.WAV``, ``a.wav.txt`` beside ``a.wav``, and letters with accents may be composed or not.
    """
    for ending in endings:
        names = (spelt + end for spelt in (*spellings(path.stem), path.name) for end in (ending, ending.upper()))
        for beside in map(path.with_name, names):
            if os.path.isfile(beside) and (text := read_text(beside)):
                return text
    return None
