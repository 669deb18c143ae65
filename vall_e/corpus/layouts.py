"""Folders of recordings → what each one is called, who speaks and what is said. No audio is decoded here.

Layouts: ``speaker`` ({speaker}/… folders), ``ljspeech`` (metadata.csv and wavs/), ``pattern`` (file names such as
``{text}_{speaker}_{take}``), ``flat`` (one speaker). In all but ljspeech a ``.txt`` beside a recording is its text.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vall_e.audio import EXTENSIONS
from vall_e.config import ConfigError
from vall_e.corpus.quality import Row, reject
from vall_e.preparation import IngestConfig

_FIELDS = ("text", "speaker", "take")
_LONGEST_ID, _LONGEST_TEXT = 80, 10_000


@dataclass(frozen=True)
class Recording:
    """A file with what its layout says about it. ``speaker`` and ``key`` are raw: any characters may occur."""

    path: Path
    key: str
    speaker: str
    text: str | None


class TextError(ValueError):
    """A transcript cannot be read; ``rule`` is the reject's."""

    def __init__(self, rule: str, value: str) -> None:
        super().__init__(value)
        self.rule = rule


def read_folder(config: IngestConfig, stage: str) -> tuple[list[Recording], list[Row]]:
    """All recordings below ``config.path``, in the order of their paths, and rejects of those without usable facts.

    Raises:
        ConfigError: there is no such folder, it has no recordings, or layout and folder do not fit.
    """
    root = Path(config.path)
    if not root.is_dir():
        raise ConfigError(f"ingest.path {config.path}: no such folder; give the folder that holds your recordings")
    files = list(recordings(root))
    if not files:
        raise ConfigError(f"ingest.path {config.path}: no {', '.join(EXTENSIONS)} file in it or below it")
    layout = _layout(config, root, files)
    if layout == "ljspeech":
        return _ljspeech(root, files, stage)
    regex = compile_pattern(config.pattern) if layout == "pattern" and config.pattern else None
    found: list[Recording] = []
    rejects: list[Row] = []
    for path in files:
        relative = path.relative_to(root)
        key = relative.with_suffix("").as_posix()
        try:
            speaker, text = _facts(layout, regex, root, relative, key)
            text = _sidecar(path) or text
            key.encode("utf-8")
            found.append(Recording(path, key, speaker, text))
        except UnicodeEncodeError:
            rejects.append(reject(str(relative), stage, "bad_file_name", str(relative), "a name in UTF-8"))
        except TextError as error:
            rejects.append(reject(str(relative), stage, error.rule, str(error), config.pattern))
    return found, rejects


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """``{text}_{speaker}_{take}`` → a regular expression for a file's name without its ending.

    ``{text}`` takes as much as it can, the others as little as they can.

    Raises:
        ConfigError: an unknown field, a field twice, or none.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    names = parts[1::2]
    for name in names:
        if name not in _FIELDS:
            raise ConfigError(
                f"ingest.pattern {pattern!r}: unknown field {{{name}}}; known are "
                + ", ".join(f"{{{field}}}" for field in _FIELDS)
            )
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"ingest.pattern {pattern!r}: name each field once, for example '{{text}}_{{speaker}}_{{take}}'"
        )
    regex = "".join(
        re.escape(part) if i % 2 == 0 else f"(?P<{part}>.+{'' if part == 'text' else '?'})"
        for i, part in enumerate(parts)
    )
    return re.compile(regex, re.DOTALL)


class Names:
    """Raw names → names that are safe in file names and unique.

    Letters and digits of ASCII, ``.``, ``_`` and ``-`` stay. A name that had to be changed, or that would differ from
    another one in case only, has eight digits of its hash behind it.
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._used: set[str] = set()

    def safe(self, raw: str) -> str:
        """The name for ``raw``: always the same one for the same ``raw``."""
        if raw in self._given:
            return self._given[raw]
        plain = unicodedata.normalize("NFKD", raw).encode("ascii", "ignore").decode()
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", plain.replace("/", "_")).strip("._-")[:_LONGEST_ID]
        if name != raw.replace("/", "_") or name.casefold() in self._used:
            name = f"{name or 'x'}-{hashlib.sha256(raw.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        self._given[raw] = name
        self._used.add(name.casefold())
        return name


def recordings(root: Path) -> Iterator[Path]:
    """Recordings below ``root`` in a fixed order. Links are followed, each folder once, so a loop ends."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
                yield Path(folder, name)


def _layout(config: IngestConfig, root: Path, files: list[Path]) -> str:
    lj = (root / "metadata.csv").is_file() and (root / "wavs").is_dir()
    if config.layout == "ljspeech" and not lj:
        raise ConfigError(f"ingest.layout ljspeech: {root} has no metadata.csv beside a folder wavs/")
    if config.layout != "auto":
        return config.layout
    if config.pattern:
        return "pattern"
    if lj:
        return "ljspeech"
    return "speaker" if any(len(path.relative_to(root).parts) > 1 for path in files) else "flat"


def _facts(layout: str, regex: re.Pattern[str] | None, root: Path, relative: Path, key: str) -> tuple[str, str | None]:
    """Speaker and text of a recording. Raises TextError where its name does not fit the pattern."""
    owner = root.resolve().name or "speaker"
    folder = relative.parts[0] if len(relative.parts) > 1 else owner
    if layout == "flat":
        return owner, None
    if regex is None:
        return folder, None
    # A pattern with a slash is about the path, others about the name.
    match = regex.fullmatch(key if "/" in regex.pattern else relative.stem)
    if match is None:
        raise TextError("name_without_pattern", relative.stem)
    facts = match.groupdict()
    text = facts.get("text")
    return facts.get("speaker") or folder, text.replace("_", " ").strip() if text else None


def _sidecar(path: Path) -> str | None:
    """The text in ``NAME.txt`` beside ``NAME.wav``; None where there is none or it is blank."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    try:
        raw = beside.read_bytes()
    except OSError as error:
        raise TextError("unreadable_text", f"{beside.name}: {error.strerror}") from None
    return _decoded(raw, beside.name)


def _decoded(raw: bytes, name: str) -> str | None:
    if len(raw) > 4 * _LONGEST_TEXT:
        raise TextError("text_too_long", f"{name}: {len(raw)} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError("text_encoding", f"{name}: not UTF-8 at byte {error.start}") from None
    if "\0" in text:
        raise TextError("text_encoding", f"{name}: has zero bytes, perhaps UTF-16; save it as UTF-8")
    return " ".join(text.split()) or None


def _ljspeech(root: Path, files: list[Path], stage: str) -> tuple[list[Recording], list[Row]]:
    """``metadata.csv`` has a line ``id|text|normalised text`` for ``wavs/id.wav`` (or flac, ogg, mp3)."""
    wavs = root / "wavs"
    by_name: dict[str, Path] = {}
    for path in files:
        if path.parent == wavs:
            by_name.setdefault(path.stem, path)
    found: dict[str, Recording] = {}
    rejects: list[Row] = []
    lines = (root / "metadata.csv").read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        where = f"metadata.csv:{number}"
        if not line.strip():
            continue
        try:
            fields = (_decoded(part, where) or "" for part in line.removeprefix(b"\xef\xbb\xbf").split(b"|"))
            name, *texts = fields
        except TextError as error:
            rejects.append(reject(where, stage, error.rule, str(error)))
            continue
        if not name or not texts:
            rejects.append(reject(name or where, stage, "bad_metadata", where, "id|text|normalised text"))
        elif name in found:
            rejects.append(reject(name, stage, "duplicate_id", where))
        elif name not in by_name:
            # Only names found by the walk are opened, so an id such as ../../secret leads nowhere.
            rejects.append(reject(name, stage, "missing", f"{where}: wavs/{name}.wav"))
        else:
            text = (texts[1] if len(texts) > 1 else "") or texts[0] or None
            found[name] = Recording(by_name[name], name, root.resolve().name or "speaker", text)
    used = {recording.path for recording in found.values()}
    mentioned = set(found) | {row["id"] for row in rejects}
    for path in files:
        if path not in used:
            double = path.parent == wavs and path.stem in mentioned
            rule = "duplicate_id" if double else "not_in_metadata"
            rejects.append(reject(str(path.relative_to(root)), stage, rule))
    return [found[name] for name in sorted(found)], rejects
