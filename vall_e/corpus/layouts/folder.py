"""A folder or a manifest → what each recording is called, who speaks and what is said. No audio is decoded here."""

from __future__ import annotations

from pathlib import Path

from vall_e.config import ConfigError
from vall_e.corpus.layouts.base import Found, recordings
from vall_e.corpus.layouts.by_path import is_group_speaker, read_by_path
from vall_e.corpus.layouts.libritts import is_libritts, read_libritts
from vall_e.corpus.layouts.ljspeech import is_ljspeech, read_ljspeech
from vall_e.corpus.layouts.table import NAMES, SUFFIXES, read_manifest, tables
from vall_e.decoders import EXTENSIONS
from vall_e.preparation import IngestConfig


def read_folder(config: IngestConfig) -> Found:
    """All recordings below ``config.path``, or in the manifest of that path, and rejects of those without usable facts.

    Raises:
        ConfigError: there is no such folder, it has no recordings, or layout and folder do not fit.
    """
    root = Path(config.path)
    if root.is_file():
        if config.layout not in ("auto", "manifest"):
            raise ConfigError(f"ingest.layout {config.layout} is about a folder, and ingest.path {root} is a file")
        return _some(read_manifest(root), root)
    if not root.is_dir():
        raise ConfigError(
            f"ingest.path {config.path}: no such folder; give the folder that holds your recordings, or a manifest"
        )
    if config.layout == "manifest" or (config.layout == "auto" and not config.pattern and _has_manifest(root)):
        return _some(read_manifest(_manifest(root)), root)
    faults: list[tuple[Path, str]] = []
    files = list(recordings(root, faults))
    if not files:
        raise ConfigError(f"ingest.path {config.path}: no {', '.join(EXTENSIONS)} or other recording in it or below it")
    layout = config.layout if config.layout != "auto" else _detected(config, root, files)
    if layout == "ljspeech":
        found = read_ljspeech(root, files)
    elif layout == "libritts":
        found = read_libritts(root, files)
    else:
        found = read_by_path(layout, root, files, config.pattern)
    for path, reason in faults:
        found.refuse(path.relative_to(root), "not_a_file" if reason == "a folder" else "unreadable_folder", reason)
    return found


def _some(found: Found, root: Path) -> Found:
    if not found.recordings and not found.rejects:
        raise ConfigError(f"ingest.path {root}: the manifest has no rows")
    return found


def _has_manifest(root: Path) -> bool:
    there = tables(root)
    return bool(there) and (there[0].stem == NAMES[0] or not is_ljspeech(root))


def _manifest(root: Path) -> Path:
    there = tables(root)
    if not there:
        names = ", ".join(f"{NAMES[0]}{suffix}" for suffix in SUFFIXES)
        raise ConfigError(
            f"ingest.layout manifest: {root} has none of {names}; or give the table itself as ingest.path"
        )
    if len(there) > 1:
        names = ", ".join(path.name for path in there)
        raise ConfigError(f"ingest.path {root} has several manifests ({names}): give the one to read as ingest.path")
    return there[0]


def _detected(config: IngestConfig, root: Path, files: list[Path]) -> str:
    if config.pattern:
        return "pattern"
    if is_ljspeech(root):
        return "ljspeech"
    if is_libritts(root, files):
        return "libritts"
    if is_group_speaker(files, root):
        return "group-speaker"
    return "speaker" if any(path.parent != root for path in files) else "flat"
