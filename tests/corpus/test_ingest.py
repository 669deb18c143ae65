"""Folders of every layout become a manifest; whatever is wrong with a file becomes one row of rejects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from vall_e.config import ConfigError
from vall_e.corpus.ingest import ingest
from vall_e.corpus.layouts.by_path import compile_pattern
from vall_e.corpus.names import Names
from vall_e.corpus.quality import RejectRateError
from vall_e.corpus.schema import MANIFEST, REJECTS, read_rows
from vall_e.preparation import IngestConfig

RATE = 8000
Row = dict[str, Any]


def sound(path: Path, seconds: float = 0.5, gain: float = 0.3, **kwargs: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = gain * np.sin(2 * np.pi * 300 * np.arange(int(seconds * RATE)) / RATE)
    soundfile.write(str(path), wav, RATE, **kwargs)
    return path


def run(root: Path, out: Path, **changes: Any) -> tuple[list[Row], list[Row], dict[str, Any]]:
    config = IngestConfig.model_validate({"source": "folder", "path": str(root), "max_reject_rate": 0.99} | changes)
    figures = ingest(config, out, progress=False)
    rows, rejects = read_rows(out / "manifest.parquet", MANIFEST), read_rows(out / "rejects.parquet", REJECTS)
    assert figures["kept"] == len(rows) and sum(figures["rejected"].values()) == len(rejects)
    return rows, rejects, figures


def test_speaker_folders_with_sidecar_text_in_four_formats(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for index, ending in enumerate(("wav", "flac", "ogg", "mp3", "WAV")):
        kwargs = {"format": "WAV"} if ending == "WAV" else {}
        sound(root / f"s{index % 2}" / "deep" / f"take{index}.{ending}", **kwargs)
    (root / "s0" / "deep" / "take0.txt").write_text("\ufeffHello,\n  world! ", encoding="utf-8")
    (root / "s1" / "deep" / "take1.txt").write_text("  \n")
    rows, rejects, figures = run(root, tmp_path / "out")
    assert [row["speaker"] for row in rows] == ["s0", "s0", "s0", "s1", "s1"] and figures["speakers"] == 2
    assert {row["id"]: row["text"] for row in rows if row["text"]} == {"s0_deep_take0": "Hello, world!"}
    assert not rejects and all(abs(row["seconds"] - 0.5) < 0.1 for row in rows)
    assert figures["hours"] == pytest.approx(5 * 0.5 / 3600, abs=1e-4)
    assert len({row["digest"] for row in rows}) == 5 - 1  # take0.wav and take4.WAV hold the same bytes


def test_languages_as_other_tools_write_them_and_licences(tmp_path: Path) -> None:
    said = ["en", "de-AT", "zh-CN", "pt_BR", "fra", "", "Klingon"]
    for name in range(len(said)):
        sound(tmp_path / f"{name}.wav")
    rows = "".join(f"{name}.wav,{language},{'CC0' if name else ''}\n" for name, language in enumerate(said))
    (tmp_path / "manifest.csv").write_text(f"audio,locale,License\n{rows}")
    rows, rejects, _ = run(tmp_path, tmp_path / "out", language="nl-NL")
    assert [row["language"] for row in rows] == ["en-us", "de", "cmn", "pt-br", "fr-fr", "nl"]
    assert [row["language_given"] for row in rows] == [True] * 5 + [False]
    assert [row["licence"] for row in rows] == [None] + ["CC0"] * 5
    assert [(row["id"], row["rule"], row["value"]) for row in rejects] == [("6", "language", "Klingon")]
    with pytest.raises(ConfigError, match=r"ingest\.language 'Klingon': espeak-ng does not speak it"):
        run(tmp_path, tmp_path / "out", language="Klingon")


def test_a_row_about_a_part_of_a_recording_is_no_text_of_all_of_it(tmp_path: Path) -> None:
    """NeMo's manifests say a place in the file."""
    for name in "abcd":
        sound(tmp_path / f"{name}.wav", 3.0)
    rows = ["a.wav,0,1.5,one", "b.wav,1.5,1.5,two", "c.wav,0.0,2.9,three", "d.wav,,1.5,four"]
    (tmp_path / "manifest.csv").write_text("\n".join(["audio_filepath,offset,duration,text", *rows]))
    rows, rejects, _ = run(tmp_path, tmp_path / "out")
    assert [row["text"] for row in rows] == ["three", "four"]
    assert [(row["id"], row["rule"], row["value"]) for row in rejects] == [
        ("a", "stretch", "the first 1.5 s of 3.0 s"), ("b.wav", "stretch", "manifest.csv:3: from 1.5 s on"),
    ]  # fmt: skip


def test_pattern_of_file_names(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("7_theo_12", "9_theo_5", "good_day_anna_1", "nonsense"):
        sound(root / "x" / f"{name}.wav")
    rows, rejects, _ = run(root, tmp_path / "out", layout="pattern", pattern="{text}_{speaker}_{take}")
    assert {(row["text"], row["speaker"]) for row in rows} == {("7", "theo"), ("9", "theo"), ("good day", "anna")}
    assert [(row["id"], row["rule"]) for row in rejects] == [("x/nonsense.wav", "name_without_pattern")]


@pytest.mark.parametrize("pattern", ["{text}_{speeker}", "plain", "{text}_{text}"])
def test_a_wrong_pattern_is_an_error(pattern: str) -> None:
    with pytest.raises(ConfigError, match="ingest.pattern"):
        compile_pattern(pattern)


def test_pattern_characters_are_literal() -> None:
    assert compile_pattern("{speaker}.({take})").fullmatch("a.(1)")
    assert not compile_pattern("{speaker}.({take})").fullmatch("axb(1)")


def test_ljspeech_layout_and_its_faults(tmp_path: Path) -> None:
    root = tmp_path / "lj"
    for name in ("a", "b", "orphan"):
        sound(root / "wavs" / f"{name}.flac")
    sound(tmp_path / "secret.wav")
    (root / "metadata.csv").write_bytes(
        b"\xef\xbb\xbfa|No. 1|Number one\nb|Two\n\na|again|again\ngone|text|text\n"
        b"../../secret|x|x\nbare\nc|\xff\xfe|x\n"
    )
    rows, rejects, figures = run(root, tmp_path / "out")
    assert {row["id"]: row["text"] for row in rows} == {"a": "Number one", "b": "Two"}
    assert {row["speaker"] for row in rows} == {"lj"}
    assert figures["rejected"] == {
        "missing": 2,
        "duplicate_id": 1,
        "bad_metadata": 1,
        "text_encoding": 1,
        "not_in_metadata": 1,
    }
    assert not any("secret" in row["path"] for row in rows)
    assert {row["id"] for row in rejects if row["rule"] == "not_in_metadata"} == {"wavs/orphan.flac"}


def test_every_gate_writes_one_row(tmp_path: Path) -> None:
    root = tmp_path / "in"
    sound(root / "good.wav")
    sound(root / "short.wav", 0.05)
    sound(root / "long.wav", 3.0)
    sound(root / "silent.wav", gain=0.0)
    sound(root / "quiet.wav", gain=1e-4, subtype="FLOAT")
    sound(root / "clipped.wav", gain=5.0)
    (root / "empty.wav").touch()
    (root / "text.wav").write_text("not audio")
    soundfile.write(str(root / "nan.wav"), np.full(RATE, np.nan), RATE, subtype="FLOAT")
    cut = sound(root / "cut.wav")
    cut.write_bytes(cut.read_bytes()[:3000])
    sound(root / "latin.wav")
    (root / "latin.txt").write_bytes("café".encode("latin-1"))
    sound(root / "wide.wav")
    (root / "wide.txt").write_bytes("word".encode("utf-16-le"))
    sound(root / "endless.wav")
    (root / "endless.txt").write_text("word " * 20_000)
    sound(root / "twice.wav")
    sound(root / "twice.flac")
    rows, rejects, _ = run(root, tmp_path / "out", max_seconds=2.0)
    assert {row["id"] for row in rows} == {"good", "twice.flac", "twice.wav"}
    assert {row["id"].split(".")[0]: row["rule"] for row in rejects} == {
        "short": "too_short",
        "long": "too_long",
        "silent": "silent",
        "quiet": "silent",
        "clipped": "clipped",
        "empty": "empty",
        "text": "unreadable",
        "nan": "not_finite",
        "cut": "truncated",
        "latin": "text_encoding",
        "wide": "text_encoding",
        "endless": "text_too_long",
    }
    assert len(rejects) == 12


def test_hostile_names_become_safe_unique_ids(tmp_path: Path) -> None:
    root = tmp_path / "in"
    names = [
        "a b.wav",
        "a_b.wav",
        "ü.wav",
        "名前.wav",
        "-rf.wav",
        "$(x);'\".wav",
        "A_B.wav",
        "n\nl.wav",
        "x" * 200 + ".wav",
    ]
    for name in names:
        sound(root / "s p" / name)
    sound(root / "s" / "p_c.wav")
    sound(root / "s_p" / "c.wav")
    rows, rejects, _ = run(root, tmp_path / "out")
    ids = [row["id"] for row in rows]
    assert len(rows) == len(names) + 2 and not rejects
    assert len({name.casefold() for name in ids}) == len(ids)
    for name in [*ids, *(row["speaker"] for row in rows)]:
        assert name == os.path.basename(name) and len(name) < 100 and name[0] not in ".-"
        assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    assert all(Path(row["path"]).is_file() for row in rows)


def test_a_name_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    root = tmp_path / "in"
    sound(root / "good.wav")
    try:
        os.link(root / "good.wav", os.fsencode(root) + b"/bad\xff.wav")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    rows, rejects, _ = run(root, tmp_path / "out")
    assert [row["id"] for row in rows] == ["good"] and [row["rule"] for row in rejects] == ["bad_file_name"]


def test_links_loops_pipes_and_hidden_files(tmp_path: Path) -> None:
    root = tmp_path / "in"
    sound(root / "s" / "a.wav")
    (root / "s" / "loop").symlink_to(root, target_is_directory=True)
    (root / "s" / "dangling.wav").symlink_to(root / "nowhere.wav")
    os.mkfifo(root / "s" / "pipe.wav")
    sound(root / "s" / ".hidden.wav")
    sound(root / ".cache" / "b.wav")
    sound(tmp_path / "elsewhere" / "c.wav")
    (root / "t").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    rows, rejects, _ = run(root, tmp_path / "out")
    assert [row["id"] for row in rows] == ["s_a", "t_c"]
    assert {row["id"]: row["rule"] for row in rejects} == {"s_dangling": "missing", "s_pipe": "unreadable"}


def test_order_and_bytes_do_not_depend_on_the_run(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for index in (3, 1, 2, 0):
        sound(root / f"s{index % 2}" / f"t{index}.wav", 0.3 + index / 10)
    tables = []
    for out in ("one", "two"):
        run(root, tmp_path / out)
        tables.append([(tmp_path / out / name).read_bytes() for name in ("manifest.parquet", "rejects.parquet")])
    assert tables[0] == tables[1]


def test_too_many_rejects_fail_with_reasons_and_leave_the_table(tmp_path: Path) -> None:
    sound(tmp_path / "in" / "a.wav")
    sound(tmp_path / "in" / "b.wav", 0.01)
    config = IngestConfig(source="folder", path=str(tmp_path / "in"), max_reject_rate=0.4)
    with pytest.raises(RejectRateError, match=r"1 of 2 .*max_reject_rate 0\.4(.|\n)*too_short 1.*b: 0\.010 s"):
        ingest(config, tmp_path / "out", progress=False)
    assert len(read_rows(tmp_path / "out" / "rejects.parquet", REJECTS)) == 1
    assert not (tmp_path / "out" / "manifest.parquet").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere"}, "nowhere: no such folder"),
        ({"layout": "ljspeech"}, "metadata.csv"),
        ({"layout": "manifest"}, "manifest.csv"),
    ],
)
def test_what_does_not_fit_the_folder_is_an_error(tmp_path: Path, changes: Row, message: str) -> None:
    sound(tmp_path / "in" / "a.wav")
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "in", tmp_path / "out", **changes)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match=r"\.wav"):
        run(tmp_path / "in", tmp_path / "out")


def test_names_are_stable() -> None:
    names = Names()
    first = [names.safe(raw) for raw in ("a", "A", "b c", "b_c", "")]
    assert [names.safe(raw) for raw in ("a", "A", "b c", "b_c", "")] == first
    assert len(set(first)) == 5 and first[0] == "a" and first[3] == "b_c"


def test_spoken_corpus(tmp_path: Path) -> None:
    spec = tmp_path / "corpus.yaml"
    spec.write_text(
        "sentences: 0\ndigit_strings: 4\nvoices:\n  - {name: a, voice: en-us}\n"
        "  - {name: b, voice: en-us+f1}\n  - {name: c, voice: en-us+m1, test: true}\n"
    )
    config = IngestConfig(path=str(spec))
    figures = ingest(config, tmp_path / "building", home="data/ingest", progress=False)
    rows = read_rows(tmp_path / "building" / "manifest.parquet", MANIFEST)
    assert figures["kept"] == len(rows) == 12 and figures["speakers"] == 3
    for row in rows:
        assert row["path"] == f"data/ingest/audio/{row['speaker']}/{row['id']}.wav"
        assert (tmp_path / "building" / "audio" / row["speaker"] / f"{row['id']}.wav").is_file()
    ingest(config, tmp_path / "again", home="data/ingest", progress=False)
    again = read_rows(tmp_path / "again" / "manifest.parquet", MANIFEST)
    assert again == rows


def test_real_digits(project_root: Path, tmp_path: Path) -> None:
    folder = project_root.parent / "shared" / "data" / "digits"
    if not folder.is_dir():
        pytest.skip("../shared/data/digits is not on this machine")
    rows, _, figures = run(folder, tmp_path / "out", pattern="{text}_{speaker}_{take}")
    assert len(rows) > 2600 and figures["speakers"] == 6
    assert {row["text"] for row in rows} == set("0123456789")
    assert figures["layout"] == "pattern" and set(figures["rejected"]) <= {"too_short"}


def test_real_ljspeech(project_root: Path, tmp_path: Path) -> None:
    folder = project_root.parent / "shared" / "data" / "ljspeech"
    if not folder.is_dir():
        pytest.skip("../shared/data/ljspeech is not on this machine")
    rows, rejects, figures = run(folder, tmp_path / "out")
    assert len(rows) == 24 and not rejects and figures["layout"] == "ljspeech"
    assert all(row["text"] and row["sample_rate"] == 22_050 and 1 < row["seconds"] < 11 for row in rows)
