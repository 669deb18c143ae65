"""A manifest: a CSV, TSV, JSONL or Parquet table with a row per recording, whose columns say what is known of it."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vall_e.config import ConfigError
from vall_e.corpus.layouts.base import Found, Recording, owner
from vall_e.corpus.layouts.texts import TextError, cleaned, sidecar
from vall_e.corpus.names import spellings

NAMES = ("manifest", "metadata")  # of a table that is found in a folder, with one of SUFFIXES
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
# Field → names of its column, the first that is there counts; case does not matter.
COLUMNS = {
    "path": ("audio", "path", "file", "audio_filepath", "audio_file", "audio_path", "file_name", "filename", "wav"),
    "text": ("text", "transcript", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "language": ("language", "lang", "locale"),
    "group": ("group", "corpus", "dataset"),
    "licence": ("licence", "license"),
    "offset": ("offset",),  # of NeMo: seconds into the file, of which the row is ``duration`` seconds
    "duration": ("duration",),
}
_LONGEST_FIELD = 4_000_000
WHOLE = "a whole recording: cut it into files of its own"


def tables(root: Path) -> list[Path]:
    """Manifests in a folder: ``manifest.*``, or else those ``metadata.*`` that have a column of files."""
    there = {name: [root / f"{name}{suffix}" for suffix in SUFFIXES] for name in NAMES}
    found = [path for path in there["manifest"] if path.is_file()]
    return found or [path for path in there["metadata"] if path.is_file() and _names_files(path)]


def read_manifest(table: Path) -> Found:
    """Recordings in the order of their rows. Relative paths begin at the table's folder and do not leave it.

    Raises:
        ConfigError: the table cannot be read, or has no column of files.
    """
    found, root = Found("manifest"), table.parent
    rows = list(_rows(table))
    columns: dict[str, str] = {}
    others: set[str] = set()
    for _, row in rows:
        if not isinstance(row, str):
            chosen = _columns(row)
            columns |= chosen
            others |= {name for name in row if name not in chosen.values()}
    taken: set[str] = set()
    for where, row in rows:
        if isinstance(row, str):
            found.refuse(where, "bad_metadata", row, "a row of the table's columns")
            continue
        try:
            values = {field: _value(row.get(name), f"{where} {name}", field) for field, name in _columns(row).items()}
        except TextError as error:
            found.refuse(where, error.rule, error, error.threshold)
            continue
        _add(found, root, where, values, taken, with_speakers="speaker" in columns)
    if "path" not in columns and (columns or not found.rejects):
        names = ", ".join(sorted({*map(str, others), *columns.values()}))
        raise ConfigError(
            f"{table}: no column of files; call one of its columns {', '.join(COLUMNS['path'][:3])} "
            f"(it has {names or 'no rows'})"
        )
    if others:
        warnings.warn(f"{table}: columns that ingest does not use: {', '.join(sorted(map(str, others)))}", stacklevel=2)
    return found


def _add(
    found: Found, root: Path, where: str, values: dict[str, str | None], taken: set[str], with_speakers: bool
) -> None:
    said = values.get("path")
    if said is None:
        found.refuse(where, "bad_metadata", "no file", "a path")
        return
    if with_speakers and values.get("speaker") is None:
        found.refuse(said, "bad_metadata", f"{where}: no speaker", "a speaker in each row, or no such column")
        return
    if not os.path.isabs(said) and os.path.normpath(said).split(os.sep)[0] == os.pardir:
        found.refuse(said, "outside_folder", f"{where}: {said}", f"a path below {root}, or an absolute one")
        return
    try:
        seconds = _whole(values)
    except TextError as error:
        found.refuse(said, error.rule, f"{where}: {error}", error.threshold)
        return
    path = _path(root, said)
    if path is None:
        found.refuse(said, "missing", f"{where}: {said}")
        return
    if path.is_dir():
        found.refuse(said, "not_a_file", f"{where}: a folder")
        return
    key = os.path.splitext(os.path.normpath(said))[0].replace(os.sep, "/")
    if str(path) in taken:
        found.refuse(said, "duplicate_id", f"{where}: {said} has a row already")
        return
    taken.add(str(path))
    try:
        text = values.get("text") or sidecar(path)
    except TextError as error:
        found.refuse(said, error.rule, error, error.threshold)
        return
    speaker = values.get("speaker") or owner(root)
    more = {name: values.get(name) for name in ("group", "language", "licence")}
    found.recordings.append(Recording(path, key, speaker, text, **more, seconds=seconds))


def _whole(values: dict[str, str | None]) -> float | None:
    """How long a recording is to be so that the row is about all of it; None where it says no place in it.

    Raises:
        TextError: the row is about a part, or its place is no number.
    """
    offset, duration = values.get("offset"), values.get("duration")
    try:
        start, seconds = float(offset or 0), float(duration) if offset and duration else None
    except ValueError:
        raise TextError("bad_metadata", f"offset {offset!r}, duration {duration!r}", "seconds") from None
    if start:
        raise TextError("stretch", f"from {offset} s on", WHOLE)
    return seconds


def _path(root: Path, said: str) -> Path | None:
    """The file that a row names."""
    for spelt in spellings(said):
        path = root / spelt
        if os.path.lexists(path):
            return path
    return None


def _columns(row: dict[Any, Any]) -> dict[str, str]:
    by_lower = {str(name).strip().lower(): name for name in reversed(list(row))}
    return {
        field: by_lower[alias]
        for field, aliases in COLUMNS.items()
        for alias in [next((alias for alias in aliases if alias in by_lower), None)]
        if alias is not None
    }


def _value(value: Any, name: str, field: str) -> str | None:
    """A cell as text; None for a blank one. Tables that were in pandas hold 103.0 for 103 and NaN for nothing.

    Raises:
        TextError: the cell is no text and no number, or its text cannot be used.
    """
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise TextError("bad_metadata", f"{name} holds {type(value).__name__}", "text or a number")
    text = cleaned(str(value), name)
    return str(value) if field == "path" and text else text  # whose every space counts


def _names_files(table: Path) -> bool:
    try:
        _, row = next(_rows(table), ("", ""))
    except ConfigError:
        return False
    return isinstance(row, dict) and "path" in _columns(row)


def _rows(table: Path) -> Iterator[tuple[str, dict[Any, Any] | str]]:
    """Place and row, or place and what is wrong with it."""
    suffix = table.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(table)
    elif suffix in (".jsonl", ".json"):
        yield from _json(table)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(table)
    else:
        raise ConfigError(f"{table}: a manifest is one of {', '.join(SUFFIXES)}")


def _read(table: Path) -> str:
    """A text table; bytes that are no UTF-8 stay in their rows as lone surrogates, which no cell may hold."""
    try:
        raw = table.read_bytes()
    except OSError as error:
        raise ConfigError(f"{table} cannot be read: {error.strerror}") from None
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", "replace")
    return raw.decode("utf-8-sig", "surrogateescape")


def _csv(table: Path) -> Iterator[tuple[str, dict[Any, Any] | str]]:
    text = _read(table)
    titles = text.split("\n", 1)[0]
    tab = table.suffix.lower() == ".tsv"
    separator = "\t" if tab else max(",;\t|", key=titles.count)
    csv.field_size_limit(_LONGEST_FIELD)
    # In a tab-separated table a lone quotation mark is a character like any other.
    how = {"delimiter": separator, "strict": not tab, "quoting": csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL}
    rows = _records(io.StringIO(text, newline="").readlines(), **how)
    _, header = next(rows, (1, []))
    if isinstance(header, str):
        raise ConfigError(f"{table}, line 1: {header}")
    names = [_unquoted(name).strip() for name in header]
    for line, cells in rows:
        where = f"{table.name}:{line}"
        if isinstance(cells, str):
            yield where, cells
        elif not any(cells):
            continue
        elif len(cells) != len(names):
            yield where, f"{len(cells)} cells, not {len(names)}"
        else:
            cells = [_unquoted(cell) for cell in cells] if tab else cells
            yield where, dict(zip(names, cells, strict=True))


def _records(lines: Sequence[str], **how: Any) -> Iterator[tuple[int, list[str] | str]]:
    """Number of its last line and cells of each row, or what is wrong with it: then the next line begins a row."""
    first = 0
    while first < len(lines):
        reader, done = csv.reader(map(lines.__getitem__, range(first, len(lines))), **how), 0
        try:
            for cells in reader:
                done = reader.line_num
                yield first + done, cells
            return
        except csv.Error as error:
            first += done + 1
            yield first, f"{error}; mend its quotation marks"


def _unquoted(cell: str) -> str:
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell


def _json(table: Path) -> Iterator[tuple[str, dict[Any, Any] | str]]:
    text = _read(table)
    if table.suffix.lower() == ".json" and text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{table} is not JSON: {error}") from None
        for number, row in enumerate(rows, start=1):
            yield f"{table.name}:{number}", row if isinstance(row, dict) else f"{type(row).__name__}, not an object"
        return
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{table.name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield where, f"not JSON: {error}"
            continue
        yield where, row if isinstance(row, dict) else f"{type(row).__name__}, not an object"


def _parquet(table: Path) -> Iterator[tuple[str, dict[Any, Any] | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(table)
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{table.name}:{number}", row
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{table} is not a readable Parquet table: {error}") from None
