"""Files that DVC cannot read are named before it tries."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipelines import repro
from pipelines.watched import check_watched
from vall_e.config import ConfigError


def test_links_to_nowhere_pipes_and_sockets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "recordings"
    (root / "anna").mkdir(parents=True)
    (root / "anna" / "good.wav").write_bytes(b"x")
    (root / "anna" / "loop").symlink_to(root, target_is_directory=True)
    os.link(root / "anna" / "good.wav", os.fsencode(root) + b"/bad\xff.wav")
    with pytest.raises(ConfigError, match=r"bad\\udcff.wav: a name that is no UTF-8"):
        check_watched(root)
    (root / "self.wav").symlink_to("self.wav")
    (root / "lost.wav").symlink_to("nowhere.wav")
    os.mkfifo(root / "anna" / "pipe.txt")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("talk")
        with pytest.raises(ConfigError) as refused:
            check_watched(root)
    said = str(refused.value)
    for name in ("self.wav: a link", "lost.wav: a link", "pipe.txt: a pipe", "talk: a pipe, a socket", "manifest"):
        assert name in said
    assert "good" not in said


def test_what_dvc_is_told_to_ignore_is_for_ingest(tmp_path: Path) -> None:
    root = tmp_path / "recordings"
    root.mkdir()
    (root / "lost.wav").symlink_to("nowhere.wav")
    os.mkfifo(root / "pipe.wav")
    (root / os.fsdecode(b"bad\xff.wav")).write_bytes(b"x")
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / ".dvcignore").write_text("recordings/lost.wav\nrecordings/bad*.wav\n")
    with pytest.raises(ConfigError, match="pipe.wav: a pipe") as refused:
        check_watched(root, tmp_path)
    assert "lost" not in str(refused.value)
    (tmp_path / ".dvcignore").write_text("recordings/lost.wav\nrecordings/bad?.wav\nrecordings/pipe.wav\n")
    check_watched(root, tmp_path)
    with pytest.raises(ConfigError, match="lost.wav"):
        check_watched(root)


def test_many_are_counted_and_a_folder_that_is_not_there_is_for_ingest_to_tell(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.wav").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="and 3 more"):
        check_watched(tmp_path)
    check_watched(tmp_path / "nothing")


def test_the_runner_refuses_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "lost.wav").symlink_to("nowhere")
    (tmp_path / "params.yaml").write_text("ingest:\n  source: folder\n  path: recordings\n", encoding="utf-8")
    before = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert repro.main(["ingest", "--set", "ingest.min_seconds=0.2"]) == 1
    assert "lost.wav: a link that leads nowhere" in capsys.readouterr().err
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == before
