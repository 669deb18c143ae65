"""Resumable work folders: keys, atomic commits, publishing, and what is left after a SIGKILL."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from vall_e.corpus.work import WorkFolder, digest_of, key_of, replace_folder, sync, write_atomic
from vall_e.preparation import EncodeConfig


def test_the_key_changes_with_inputs_params_and_code_and_with_nothing_else(tmp_path):
    data, code = tmp_path / "data", tmp_path / "code.py"
    data.mkdir()
    (data / "a").write_text("1")
    code.write_text("x = 1")

    def key(**changes):
        return key_of(data, "revision-1", params=changes.get("params", EncodeConfig()), code=[code])

    first = key()
    assert key() == first and len(first) == 16
    os.utime(data / "a", (0, 0))
    assert key() == first
    assert key(params=EncodeConfig(shard_size=7)) != first
    assert key_of(data, "revision-2", params=EncodeConfig(), code=[code]) != first
    (data / "a").write_text("2")
    second = key()
    assert second != first
    (data / "a").rename(data / "b")
    third = key()
    assert third != second
    code.write_text("x = 2")
    assert key() != third


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        key_of(tmp_path / "nothing-here")


def test_params_that_have_no_stable_text_are_refused():
    with pytest.raises(TypeError, match="cannot be part of a key"):
        key_of(params={"x": object()})


def test_only_stale_folders_of_the_same_stage_go(tmp_path):
    for name in ("encode-" + "0" * 16, "encode-extra-" + "0" * 16, "train-" + "0" * 16, "encode-notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    work = WorkFolder("encode", "1" * 16, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [work.path.name, "encode-extra-" + "0" * 16, "train-" + "0" * 16, "encode-notes"]
    )


def test_commit_done_and_a_second_run_that_sees_it(tmp_path):
    work = WorkFolder("encode", "1" * 16, tmp_path)
    assert not work.done("a.txt")
    work.commit("a.txt", lambda path: path.write_text("whole"))
    again = WorkFolder("encode", "1" * 16, tmp_path)
    assert again.done("a.txt") and not again.done("b.txt")


def test_a_writer_that_fails_leaves_nothing_and_spoils_nothing(tmp_path):
    work = WorkFolder("encode", "1" * 16, tmp_path)
    work.commit("a.txt", lambda path: path.write_text("whole"))

    def fail(path):
        path.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        work.commit("a.txt", fail)
    assert [p.name for p in work.path.iterdir()] == ["a.txt"]
    assert (work.path / "a.txt").read_text() == "whole"


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_folder_after(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("vall_e.corpus.work.sync", lambda path: told.append((path.name, (tmp_path / "a").exists())))
    write_atomic(tmp_path / "a", lambda path: path.write_text("x"))
    assert told == [(f".tmp-{os.getpid()}-a", False), (tmp_path.name, True)]


def test_published_names_are_on_the_disk(tmp_path, monkeypatch):
    work, told = WorkFolder("encode", "1" * 16, tmp_path / ".work"), []
    work.commit("a", lambda path: path.write_text("1"))
    monkeypatch.setattr("vall_e.corpus.work.sync", lambda path: told.append((path.name, (tmp_path / "out").exists())))
    work.publish(tmp_path / "out")
    assert told == [("a", False), (".out.new", False), (tmp_path.name, True)]


def test_a_folder_takes_its_place_when_all_that_is_in_it_is_on_the_disk(tmp_path, monkeypatch):
    fresh, place = tmp_path / "fresh", tmp_path / "place"
    for folder, said in ((place, "old"), (fresh / "deep", "new")):
        folder.mkdir(parents=True)
        (folder / "file").write_text(said)
    told = []
    monkeypatch.setattr(
        "vall_e.corpus.work.sync", lambda path: told.append((path.relative_to(tmp_path).as_posix(), fresh.exists()))
    )
    replace_folder(fresh, place)
    assert told == [("fresh/deep/file", True), ("fresh/deep", True), ("fresh", True), (".", False)]
    assert [p.name for p in tmp_path.iterdir()] == ["place"]
    assert (place / "deep/file").read_text() == "new" and not (place / "file").exists()


def test_a_folder_that_cannot_be_synced_is_no_error_and_a_full_disk_is(tmp_path, monkeypatch):
    for number, refused in ((errno.EINVAL, False), (errno.ENOSPC, True)):

        def broken(handle, number=number):
            raise OSError(number, "no")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(OSError) if refused else contextlib.nullcontext():
            sync(tmp_path)


def test_publish_replaces_the_out_folder_and_removes_the_work(tmp_path):
    out = tmp_path / "data" / "encode"
    out.mkdir(parents=True)
    (out / "of-an-older-run").write_text("x")
    work = WorkFolder("encode", "1" * 16, tmp_path / ".work")
    work.commit("a", lambda path: path.write_text("1"))
    work.commit("b", lambda path: path.write_text("2"))
    with pytest.raises(FileNotFoundError, match="c"):
        work.publish(out, ["a", "c"])
    assert (out / "of-an-older-run").exists()
    assert work.publish(out, ["a", "b"]) == [out / "a", out / "b"]
    assert sorted(p.name for p in out.iterdir()) == ["a", "b"]
    assert [p.name for p in out.parent.iterdir()] == ["encode"]
    assert not (tmp_path / ".work").exists()


def test_a_folder_digest_ignores_byte_code(tmp_path):
    (tmp_path / "a.py").write_text("x")
    before = digest_of(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("y")
    assert digest_of(tmp_path) == before


_KILLED = """
import sys, time
from vall_e.corpus.work import WorkFolder
work = WorkFolder("encode", "1" * 16, sys.argv[1])
work.commit("first", lambda path: path.write_text("whole"))
def slowly(path):
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
work.commit("second", slowly)
"""


def test_sigkill_in_the_middle_of_a_commit_costs_only_that_file(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    work = WorkFolder("encode", "1" * 16, tmp_path)
    assert work.done("first") and not work.done("second")
    assert [p.name for p in work.path.iterdir()] == ["first"]


def test_two_processes_do_not_share_a_temporary_file(tmp_path):
    seen = []
    write_atomic(tmp_path / "a.parquet", lambda path: (seen.append(path.name), path.write_text("x")))
    assert str(os.getpid()) in seen[0] and seen[0].endswith("a.parquet")
    assert time.time() - (tmp_path / "a.parquet").stat().st_mtime < 60
