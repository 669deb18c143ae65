"""Every layout, named or detected, gives speaker, group, language and text; what does not fit is explained."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sounds import write
from vall_e.config import ConfigError
from vall_e.corpus.layouts.base import Found
from vall_e.corpus.layouts.folder import read_folder
from vall_e.preparation import IngestConfig


def read(path: Path, **changes: Any) -> Found:
    return read_folder(IngestConfig.model_validate({"source": "folder", "path": str(path)} | changes))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name, np.full(400, 0.1, np.float32))
    return root


def facts(found: Found) -> dict[str, tuple[str | None, str, str | None]]:
    return {r.key: (r.group, r.speaker, r.text) for r in found.recordings}


def rules(found: Found) -> dict[str, str]:
    return {row["id"]: row["rule"] for row in found.rejects}


@pytest.mark.parametrize(
    ("files", "layout", "speakers"),
    [
        (("a.wav", "b.flac"), "flat", {(None, "in")}),
        (("anna/a.wav", "bob/b.wav"), "speaker", {(None, "anna"), (None, "bob")}),
        (("anna/a.wav", "bob/monday/b.wav"), "speaker", {(None, "anna"), (None, "bob")}),
        (("x/anna/a.wav", "x/bob/b.wav", "y/zoe/c.wav"), "group-speaker", {("x", "anna"), ("x", "bob"), ("y", "zoe")}),
        (("anna/session_1/a.wav", "anna/session_2/b.wav"), "speaker", {(None, "anna")}),
        (("anna/17/a.wav", "anna/18/b.wav"), "speaker", {(None, "anna")}),
        (("anna/deep/a.wav", "anna/other/c.wav", "bob/deep/b.wav"), "speaker", {(None, "anna"), (None, "bob")}),
    ],
)  # fmt: skip
def test_folders_are_detected(tmp_path: Path, files: tuple[str, ...], layout: str, speakers: set[Any]) -> None:
    found = read(touch(tmp_path / "in", *files))
    assert found.layout == layout and not found.rejects
    assert {(r.group, r.speaker) for r in found.recordings} == speakers and len(found.recordings) == len(files)


def test_groups_by_name_keep_speakers_of_one_name_apart(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "x/anna/1.wav", "y/anna/deep/2.wav", "y/bob/3.wav", "y/4.wav", "5.wav")
    found = read(root, layout="group-speaker")
    assert {r.key: (r.group, r.speaker) for r in found.recordings} == {
        "x/anna/1": ("x", "x/anna"), "y/anna/deep/2": ("y", "y/anna"), "y/bob/3": ("y", "bob"),
    }  # fmt: skip
    assert rules(found) == {"y/4.wav": "not_in_layout", "5.wav": "not_in_layout"}
    assert {r.speaker for r in read(root, layout="flat").recordings} == {"in"}


def test_text_beside_in_txt_or_lab(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "a.wav", "b.wav", "c.wav")
    (root / "a.lab").write_text("from the lab")
    (root / "b.lab").write_text("from the lab")
    (root / "b.txt").write_text("from the text")
    (root / "c.txt").write_text(" \n")
    assert {r.key: r.text for r in read(root).recordings} == {"a": "from the lab", "b": "from the text", "c": None}


def test_text_beside_a_name_that_is_spelt_a_little_otherwise(tmp_path: Path) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    root = touch(tmp_path / "in", "A.WAV", "b.wav", f"{taken_apart}.wav", f"{composed}2.wav", "d.wav")
    for name in ("A.TXT", "b.wav.txt", f"{composed}.txt", f"{taken_apart}2.txt", "D.txt"):
        (root / name).write_text(f"of {name}")
    texts = {r.key: r.text for r in read(root).recordings}
    assert texts.pop("d") is None  # another file, as far as can be told
    assert len(texts) == 4 and all(texts.values()), texts


def test_pattern_over_the_path(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "de/anna/one_two_7.wav", "en/bob/three_1.wav")
    found = read(root, pattern="{language}/{speaker}/{text}_{take}")
    assert {(r.language, r.speaker, r.text) for r in found.recordings} == {
        ("de", "anna", "one two"), ("en", "bob", "three"),
    }  # fmt: skip


@pytest.mark.parametrize("inside", ["", "train-clean"])
def test_libritts(tmp_path: Path, inside: str) -> None:
    root = touch(
        tmp_path / "corpus",
        *("train-clean/14/208/14_208_000001_000000.wav", "train-clean/14/208/14_208_000001_000001.wav"),
        *("train-clean/16/122/16_122_000002_000000.wav", "train-clean/17/5/17_5_1.wav"),
    )
    chapter = root / "train-clean" / "14" / "208"
    (chapter / "14_208_000001_000000.normalized.txt").write_text("Chapter eleven.")
    (chapter / "14_208_000001_000000.original.txt").write_text("Chapter 11.")
    (chapter / "14_208_000001_000001.original.txt").write_text("Only this.")
    (root / "train-clean/16/122/16_122_000002_000000.normalized.txt").write_bytes(b"\xff\xfe\xfd")
    found = read(root / inside)
    group = None if inside else "train-clean"
    assert found.layout == "libritts"
    assert {(r.group, r.speaker, r.text) for r in found.recordings} == {
        (group, "14", "Chapter eleven."), (group, "14", "Only this."), (group, "17", None),
    }  # fmt: skip
    assert set(rules(found).values()) == {"text_encoding"}


def test_librispeech(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", *(f"dev/84/121123/84-121123-000{n}.flac" for n in range(3)))
    (root / "dev/84/121123/84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT\n\n")
    found = read(root)
    assert found.layout == "libritts" and {r.speaker for r in found.recordings} == {"84"}
    assert [r.text for r in found.recordings] == ["GO DO YOU HEAR", "BUT", None]


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_tables_of_texts_with_a_mark(tmp_path: Path, coding: str) -> None:
    libri = touch(tmp_path / "libri", *(f"84/121/84-121-{n}.flac" for n in range(2)))
    (libri / "84/121/84-121.trans.txt").write_text("84-121-0 ÉCOUTE\n84-121-1 TWO\n", coding)
    assert [r.text for r in read(libri).recordings] == ["ÉCOUTE", "TWO"]
    lj = touch(tmp_path / "lj", "wavs/a.wav", "wavs/b.wav", "wavs/c.wav")
    (lj / "metadata.csv").write_text("a|one|eins\nb||\nc|", coding)
    (lj / "wavs/b.lab").write_text("from the lab")
    (lj / "wavs/c.lab").write_bytes(b"caf\xe9")
    found = read(lj)
    assert [r.text for r in found.recordings] == ["eins", "from the lab"]
    assert [(row["id"], row["rule"]) for row in found.rejects] == [("c", "text_encoding")]


def test_tables_of_texts_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libri = touch(tmp_path / "libri", "84/121/84-121-0.flac", "84/121/84-121-1.flac")
    (libri / "84/121/84-121.trans.txt").write_text("84-121-0 ONE\n")
    (libri / "84/121/84-121-1.lab").write_text("two")
    lj = touch(tmp_path / "lj", "wavs/a.wav")
    (lj / "metadata.csv").write_text("a|one\n")
    opened = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.suffix == ".lab":
            return opened(path)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    found = read(libri)
    assert [r.text for r in found.recordings] == ["two"]
    assert rules(found) == {"84/121/84-121-0.flac": "unreadable_text"}
    with pytest.raises(ConfigError, match=r"metadata\.csv: Permission denied"):
        read(lj)


ROWS = [
    {"audio": "x/a.wav", "transcript": 'He said, "go"; now', "Speaker": "anna", "lang": "de", "extra": "1"},
    {"audio": "b.flac", "transcript": "two", "Speaker": "7", "lang": "", "extra": ""},
]


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """``rows`` as a manifest of the kind that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        quoted = [[f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in row.values()] for row in rows]
        lines = [separator.join(rows[0]), *(separator.join(cells) for cells in quoted)]
        path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("by", ["folder", "file"])
def test_manifests_of_every_kind(tmp_path: Path, suffix: str, by: str) -> None:
    root = touch(tmp_path / "in", "x/a.wav", "b.flac", "unlisted.wav")
    file = table(root / (f"manifest.{suffix}" if by == "folder" else f"list.{suffix}"), ROWS)
    with pytest.warns(UserWarning, match="does not use: extra"):
        found = read(root if by == "folder" else file)
    assert found.layout == "manifest" and not found.rejects
    assert [(r.key, r.speaker, r.text, r.language) for r in found.recordings] == [
        ("x/a", "anna", 'He said, "go"; now', "de"), ("b", "7", "two", None),
    ]  # fmt: skip
    assert all(r.path.is_file() for r in found.recordings)


def test_what_is_wrong_with_a_row_costs_that_row(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "a.wav", "b.wav", "c.wav", "d.wav", "e.wav", "f.wav", "space  twice .wav")
    outside = touch(tmp_path / "elsewhere", "ok.wav") / "ok.wav"
    rows = [
        {"path": "a.wav", "speaker": 103.0, "text": "one", "group": "g"},
        {"path": "a.wav", "speaker": 103, "text": "again"},
        {"path": "./sub/../b.wav", "speaker": float("nan"), "text": "no speaker"},
        {"path": "../elsewhere/ok.wav", "speaker": 1},
        {"path": str(outside), "speaker": 1, "text": "two"},
        {"path": "/nowhere/at all.wav", "speaker": 1},
        {"path": "gone.wav", "speaker": 1},
        {"path": "x" * 300 + ".wav", "speaker": 1},
        {"path": "nul\0.wav", "speaker": 1},
        {"path": None, "speaker": 1},
        {"path": "c.wav", "speaker": {"name": "anna"}},
        {"path": "d.wav", "speaker": 1, "text": "half \ud800 of one"},
        {"path": "http://host/x.wav", "speaker": 1},
        {"path": "space  twice .wav", "speaker": 1},
    ]
    (root / "manifest.jsonl").write_text("\n".join([*map(json.dumps, rows), "{broken", "[1]"]))
    found = read(root)
    assert [(r.path.name, r.speaker, r.text, r.group) for r in found.recordings] == [
        ("a.wav", "103", "one", "g"), ("ok.wav", "1", "two", None), ("space  twice .wav", "1", None, None),
    ]  # fmt: skip
    assert [row["rule"] for row in found.rejects] == [
        *("duplicate_id", "bad_metadata", "outside_folder", "missing", "missing", "missing", "text_encoding"),
        *("bad_metadata", "bad_metadata", "text_encoding", "missing", "bad_metadata", "bad_metadata"),
    ]
    assert all(row["value"] for row in found.rejects)


def test_rows_of_a_csv_that_are_not_its_columns(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "a.wav", "b.wav")
    (root / "manifest.csv").write_bytes(b"file;text\na.wav;caf\xe9\nb.wav;fine;more\n\nb.wav;fine\n")
    found = read(root)
    assert [(r.key, r.text) for r in found.recordings] == [("b", "fine")]
    assert rules(found) == {"manifest.csv:2": "text_encoding", "manifest.csv:3": "bad_metadata"}


def test_a_bad_quotation_mark_costs_its_row(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", *(f"{name}.wav" for name in "abcde"))
    rows = ['a.wav,"Hi" he said', 'b.wav,"one, ""two""\nthree"', 'c.wav,"never closed', "d.wav,four", 'e.wav,"five"']
    (root / "manifest.csv").write_text("\n".join(["path,text", *rows]))
    found = read(root)
    assert facts(found) == {"b": (None, "in", 'one, "two" three'), "d": (None, "in", "four"), "e": (None, "in", "five")}
    assert rules(found) == {"manifest.csv:2": "bad_metadata", "manifest.csv:5": "bad_metadata"}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_rows_of_json_lines_do_not_depend_on_their_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    root = touch(tmp_path / "in", "a.wav", "b.wav", "c.wav")
    rows = [{"audio": "a.wav"}, {"audio": "b.wav", "speaker": "anna"}, {"audio": "c.wav"}]
    table(root / "manifest.jsonl", [rows[index] for index in order])
    found = read(root)
    assert facts(found) == {"b": (None, "anna", None)}
    assert rules(found) == {"a.wav": "bad_metadata", "c.wav": "bad_metadata"}


def test_a_json_array_is_a_manifest_and_folders_are_no_recordings(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "x/a.wav")
    rows = [{"audio": "x/a.wav", "text": "one"}, {"audio": "/"}, {"audio": "."}, {"audio": "x"}, 5]
    (root / "manifest.json").write_text(json.dumps(rows, indent=2))
    found = read(root)
    assert facts(found) == {"x/a": (None, "in", "one")}
    assert rules(found) == {**dict.fromkeys(("/", ".", "x"), "not_a_file"), "manifest.json:5": "bad_metadata"}


def test_composed_and_decomposed_names_are_the_same_file(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "cafe\u0301.wav")
    table(root / "manifest.csv", [{"path": "caf\u00e9.wav", "text": "one"}])
    assert [r.path.name for r in read(root).recordings] == ["cafe\u0301.wav"]


def test_a_table_named_metadata_with_a_column_of_files_is_a_manifest(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "data/a.wav")
    table(root / "metadata.csv", [{"file_name": "data/a.wav", "transcription": "one"}])
    found = read(root)
    assert found.layout == "manifest" and facts(found) == {"data/a": (None, "in", "one")}
    (root / "metadata.csv").write_text("notes,date\nx,y\n")
    assert read(root).layout == "speaker"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("manifest.csv", "sound,text\na.wav,x\n", "no column of files.*it has sound, text"),
        ("manifest.csv", "", "no rows"),
        ("manifest.csv", 'path,"te"xt\na.wav,x\n', "line 1.*quotation marks"),
        ("manifest.json", '[{"path": "a.wav"},', "manifest.json is not JSON"),
        ("manifest.parquet", "not a table", "not a readable Parquet"),
        ("list.xml", "<a/>", "a manifest is one of"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    root = touch(tmp_path / "in", "a.wav")
    (root / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(root if name.startswith("manifest") else root / name)


def test_two_manifests_are_an_error_and_one_of_them_is_not(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "a.wav", "b.wav")
    table(root / "manifest.csv", [{"path": "a.wav"}])
    table(root / "manifest.jsonl", [{"path": "b.wav"}])
    with pytest.raises(ConfigError, match="several manifests"):
        read(root)
    assert [r.key for r in read(root / "manifest.jsonl").recordings] == ["b"]
    with pytest.raises(ConfigError, match="is a file"):
        read(root / "manifest.jsonl", layout="speaker")


def test_a_pattern_for_another_layout_is_an_error() -> None:
    with pytest.raises(ValueError, match="ingest.pattern is for layout pattern"):
        IngestConfig(layout="ljspeech", pattern="{text}")
