"""LibriTTS: {split}/{speaker}/{chapter}/ID.wav beside ID.normalized.txt or ID.original.txt; LibriSpeech: a chapter's
texts in {speaker}-{chapter}.trans.txt. The split, where the folder holds it, is the group.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from vall_e.corpus.layouts.base import Found, Recording, is_utf8
from vall_e.corpus.layouts.texts import TextError, cleaned, decoded, read_lines, sidecar

_TEXTS = (".normalized.txt", ".original.txt", ".txt", ".lab")


def is_libritts(root: Path, files: list[Path]) -> bool:
    deep = [path for path in files if len(path.relative_to(root).parts) > 2]
    beside = (path.with_name(path.stem + ending) for path in deep for ending in _TEXTS[:2])
    return any(map(os.path.isfile, beside)) or any(map(os.path.isfile, map(_chapter_file, deep)))


def read_libritts(root: Path, files: list[Path]) -> Found:
    """Recordings in the order of ``files``; one that no text file names has no text."""
    found = Found("libritts")
    texts = cache(_chapter)
    for path in files:
        relative = path.relative_to(root)
        folders = relative.parts[:-1]
        if not is_utf8(relative):
            found.refuse(relative, "bad_file_name", relative, "a name in UTF-8")
        elif len(folders) < 2:
            found.refuse(relative, "not_in_layout", relative.as_posix(), "{split}/{speaker}/{chapter}/...")
        else:
            try:
                text = sidecar(path, _TEXTS) or _line(texts(_chapter_file(path)), path.stem)
            except TextError as error:
                found.refuse(relative, error.rule, error, error.threshold)
                continue
            group = folders[-3] if len(folders) > 2 else None
            found.recordings.append(Recording(path, relative.with_suffix("").as_posix(), folders[-2], text, group))
    return found


def _chapter_file(path: Path) -> Path:
    chapter = path.parent
    return chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"


def _chapter(path: Path) -> dict[str, bytes]:
    """Id → text of a ``*.trans.txt``, whose lines are ``ID TEXT``; empty where there is none. Raises TextError."""
    if not os.path.isfile(path):
        return {}
    pairs = (line.split(maxsplit=1) for line in read_lines(path) if line.strip())
    return {pair[0].decode("utf-8", "replace"): pair[1] if len(pair) > 1 else b"" for pair in pairs}


def _line(texts: dict[str, bytes], name: str) -> str | None:
    return cleaned(decoded(texts[name], name), name) if name in texts else None
