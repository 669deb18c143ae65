"""Layouts whose facts are in folders and names: flat, speaker, group-speaker and pattern; text beside the recording.

``flat``: one speaker · ``speaker``: {speaker}/… · ``group-speaker``: {group}/{speaker}/… · ``pattern``: names such as
``{text}_{speaker}_{take}``, or with a slash in it paths such as ``{language}/{speaker}/{take}``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

from vall_e.config import ConfigError
from vall_e.corpus.layouts.base import Found, Recording, is_utf8, owner
from vall_e.corpus.layouts.texts import TextError, cleaned, sidecar

_FIELDS = ("text", "speaker", "take", "group", "language")
# Folders within a speaker's: not speakers themselves.
_SESSION = re.compile(
    r"(session|chapter|ch|part|day|disc|disk|cd|tape|set|vol|volume|book|take|wavs?|audio|clips|recordings?|mic)?"
    r"[\W_]*\d*"
)


def read_by_path(layout: str, root: Path, files: list[Path], pattern: str | None) -> Found:
    """Recordings in the order of ``files``.

    Raises:
        ConfigError: ``pattern`` is not one.
    """
    pattern = pattern if layout == "pattern" else None
    found = Found(layout)
    for path in files:
        relative = path.relative_to(root)
        if not is_utf8(relative):
            found.refuse(relative, "bad_file_name", relative, "a name in UTF-8")
            continue
        try:
            facts = _facts(layout, pattern, root, relative)
            found.recordings.append(replace(facts, path=path, text=sidecar(path) or facts.text))
        except TextError as error:
            found.refuse(relative, error.rule, error, error.threshold)
    if layout == "group-speaker":
        found.recordings = _apart(found.recordings)
    return found


def is_group_speaker(files: list[Path], root: Path) -> bool:
    """Whether folders two deep are speakers in groups beyond doubt, and not sessions of speakers.

    All recordings lie two folders deep, a group has several speakers, no speaker's name is in two groups, and none is a
    number or what parts of a recording are called (session_1, wavs).
    """
    folders = {path.relative_to(root).parts[:-1] for path in files}
    if any(len(parts) != 2 for parts in folders):
        return False
    groups, speakers = {group for group, _ in folders}, [speaker for _, speaker in folders]
    return (
        len(groups) < len(speakers)
        and len(set(speakers)) == len(speakers)
        and not any(_SESSION.fullmatch(speaker.lower()) for speaker in speakers)
    )


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """``{text}_{speaker}_{take}`` → a regular expression for a file's name, or path, without its ending.

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


def _facts(layout: str, pattern: str | None, root: Path, relative: Path) -> Recording:
    """What folders and name say. Raises TextError where they do not fit the layout."""
    key, folders = relative.with_suffix("").as_posix(), relative.parts[:-1]
    if layout == "group-speaker":
        if len(folders) < 2:
            raise TextError("not_in_layout", relative.as_posix(), "{group}/{speaker}/...")
        return Recording(relative, key, folders[1], group=folders[0])
    speaker = folders[0] if folders and layout != "flat" else owner(root)
    if pattern is None:
        return Recording(relative, key, speaker)
    # A pattern with a slash is about the path, others about the name.
    name = key if "/" in pattern else relative.stem
    match = compile_pattern(pattern).fullmatch(name)
    if match is None:
        raise TextError("name_without_pattern", name, pattern)
    facts = match.groupdict()
    said = facts.get("text")
    text = cleaned(said.replace("_", " "), relative.name) if said else None
    return Recording(relative, key, facts.get("speaker") or speaker, text, facts.get("group"), facts.get("language"))


def _apart(recordings: list[Recording]) -> list[Recording]:
    """Speakers of the same name in two groups are two: theirs are called GROUP/SPEAKER."""
    groups: defaultdict[str, set[str | None]] = defaultdict(set)
    for recording in recordings:
        groups[recording.speaker].add(recording.group)
    return [
        replace(recording, speaker=f"{recording.group}/{recording.speaker}")
        if len(groups[recording.speaker]) > 1
        else recording
        for recording in recordings
    ]
