"""LJSpeech: ``metadata.csv`` has a line ``id|text|normalised text`` for ``wavs/id.wav`` (or another format)."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from vall_e.config import ConfigError
from vall_e.corpus.layouts.base import Found, Recording, is_utf8, owner
from vall_e.corpus.layouts.texts import TextError, cleaned, decoded, read_lines, sidecar


def is_ljspeech(root: Path) -> bool:
    return (root / "metadata.csv").is_file() and (root / "wavs").is_dir()


def read_ljspeech(root: Path, files: list[Path]) -> Found:
    """Recordings in the order of their ids; what only one of folder and table has is a reject.

    Raises:
        ConfigError: there is no ``metadata.csv`` that can be read beside ``wavs/``.
    """
    if not is_ljspeech(root):
        raise ConfigError(f"ingest.layout ljspeech: {root} has no metadata.csv beside a folder wavs/")
    wavs = root / "wavs"
    by_name: dict[str, Path] = {}
    for path in files:
        if path.parent == wavs:
            by_name.setdefault(_form(path.stem), path)
    found = Found("ljspeech")
    taken: dict[str, Recording] = {}
    used: set[Path] = set()
    try:
        lines = read_lines(root / "metadata.csv")
    except TextError as error:
        raise ConfigError(f"ingest.layout ljspeech: {root}: {error}") from None
    for number, line in enumerate(lines, start=1):
        where = f"metadata.csv:{number}"
        if not line.strip():
            continue
        try:
            name, *texts = (cleaned(part, where) or "" for part in decoded(line, where).split("|"))
        except TextError as error:
            found.refuse(where, error.rule, error, error.threshold)
            continue
        name = _form(name)
        if not name or not texts:
            found.refuse(name or where, "bad_metadata", where, "id|text|normalised text")
        elif name in taken:
            found.refuse(name, "duplicate_id", where)
        elif name not in by_name:
            # Only names found by the walk are opened, so an id such as ../../secret leads nowhere.
            found.refuse(name, "missing", f"{where}: wavs/{name}.wav")
        else:
            text = (texts[1] if len(texts) > 1 else "") or texts[0]
            used.add(by_name[name])
            try:
                taken[name] = Recording(by_name[name], name, owner(root), text or sidecar(by_name[name]))
            except TextError as error:
                found.refuse(name, error.rule, error, error.threshold)
    mentioned = set(taken) | {row["id"] for row in found.rejects}
    for path in files:
        if path in used:
            continue
        relative = path.relative_to(root)
        if not is_utf8(relative):
            found.refuse(relative, "bad_file_name", relative, "a name in UTF-8")
        else:
            double = path.parent == wavs and _form(path.stem) in mentioned
            found.refuse(relative, "duplicate_id" if double else "not_in_metadata")
    found.recordings = [taken[name] for name in sorted(taken)]
    return found


def _form(name: str) -> str:
    """Folders that were on a Mac have decomposed names, the table has composed ones."""
    return unicodedata.normalize("NFC", name)
