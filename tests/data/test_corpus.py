"""Codes mapped into memory: what the tables said, made once, safe among processes, and what is wrong is refused."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import LEVELS
from tests.training.test_run import make_project
from vall_e.corpus.schema import CODES, SIMILAR, read_rows, write_table
from vall_e.data.corpus import CodesCorpus
from vall_e.data.store import cached
from vall_e.text.tokenizer import Tokenizer, UnknownPhoneError

TOKENIZER = Tokenizer("abcd ")


def _open(root: Path, split: str = "train", tokenizer: Tokenizer = TOKENIZER) -> CodesCorpus:
    similar = root / "data/similar/similar.parquet"
    return CodesCorpus.load(root / "data/encode", tokenizer, split, root / ".work", similar)


def _shard(root: Path) -> tuple[Path, list[dict]]:
    path = root / "data/encode/shard-00000.parquet"
    return path, read_rows(path, CODES)


def test_every_row_is_what_the_tables_say(tmp_path: Path) -> None:
    make_project(tmp_path)
    path, rows = _shard(tmp_path)
    rows[1] |= {"text": "zoë ß", "phones": [], "group": "left"}
    write_table(rows[:7], CODES, path)
    write_table(rows[7:], CODES, path.with_name("shard-00001.parquet"))
    near = {row["id"]: row["neighbours"] for row in read_rows(tmp_path / "data/similar/similar.parquet", SIMILAR)}
    total = 0
    for split in ("train", "val", "test"):
        corpus, wanted = _open(tmp_path, split), [row for row in rows if row["split"] == split]
        assert len(corpus.utterances) == len(wanted)
        for u, row in zip(corpus.utterances, wanted, strict=True):
            assert (u.id, u.text, u.speaker, u.language) == tuple(row[k] for k in ("id", "text", "speaker", "language"))
            assert u.phones.tolist() == TOKENIZER.encode(row["phones"]) and u.frames == row["frames"]
            assert u.codes.shape == (LEVELS, row["frames"]) and u.codes.reshape(-1).tolist() == row["codes"]
            assert corpus.utterances.name("group", u.index) == (row["group"] or "")
            found = [corpus.utterances[i].id for i in corpus.similar[u.index]]
            assert found == [n for n in near[u.id] if n in {w["id"] for w in wanted}]
            for name, keys in {"speaker": ("speaker",), "tongue": ("speaker", "language")}.items():
                like = [i for i, w in enumerate(wanted) if all(w[k] == row[k] for k in keys)]
                assert corpus.utterances.groups[name].like(u.index).tolist() == like
        total += sum(w["frames"] for w in wanted)
        assert corpus.hours == pytest.approx(sum(w["frames"] for w in wanted) / 50 / 3600)
    assert total == sum(row["frames"] for row in rows)


def test_arrays_are_made_once_and_again_when_a_table_changes(tmp_path: Path) -> None:
    make_project(tmp_path)
    first = _open(tmp_path)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / ".work").glob("loader-*/**/*")}
    _open(tmp_path, "val")
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / ".work").glob("loader-*/**/*")}
    path, rows = _shard(tmp_path)
    before = first.utterances[0].codes.copy()
    rows[0]["codes"] = [(code + 1) % 11 for code in rows[0]["codes"]]
    write_table(rows, CODES, path)
    assert _open(tmp_path).utterances[0].codes.reshape(-1).tolist() == rows[0]["codes"]
    np.testing.assert_array_equal(first.utterances[0].codes, before)  # who has it open keeps what he had
    assert len(list((tmp_path / ".work").glob("loader-codes-*"))) == 1  # what is stale is gone


def _build(folder: Path) -> None:
    (folder / "one").write_text("1")
    (folder.parent / f"built-{multiprocessing.current_process().pid}").touch()
    (folder / "two").write_text("2")


def test_of_several_processes_one_makes_them(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=cached, args=(tmp_path, "loader-x", "k", _build), daemon=True) for _ in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join(200)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("built-*"))) == 1
    assert {path.name for path in (tmp_path / "loader-x-k").iterdir()} == {"one", "two"}


def test_what_a_killed_or_failed_process_left_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / ".loader-x-k").mkdir()
    (tmp_path / ".loader-x-k/half").touch()

    def fail(folder: Path) -> None:
        (folder / "one").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached(tmp_path, "loader-x", "k", fail)
    assert not (tmp_path / "loader-x-k").exists()
    assert {path.name for path in cached(tmp_path, "loader-x", "k", _build).iterdir()} == {"one", "two"}


def test_wrong_tables_are_refused_by_name(tmp_path: Path) -> None:
    make_project(tmp_path)
    path, rows = _shard(tmp_path)
    with pytest.raises(UnknownPhoneError, match="'d'"):
        _open(tmp_path, tokenizer=Tokenizer("abc "))
    write_table([rows[0] | {"frames": 3}], CODES, path)
    with pytest.raises(ValueError, match=rf"{path.name}: row u0 holds .* codes, not {LEVELS} x 3"):
        _open(tmp_path)
    flat = rows[0] | {"levels": 1, "frames": LEVELS * rows[0]["frames"]}
    write_table([flat], CODES, path)
    with pytest.raises(ValueError, match=f"row u0 has 1 levels, and codec.json says {LEVELS}: run the encode stage"):
        _open(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="run the encode stage first"):
        _open(tmp_path)
