"""Checkpoints are whole or not there: a full disk, a damaged file, a polite and a late end."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_run import make_project, params, run
from vall_e.training import checkpoints
from vall_e.training import run as training
from vall_e.training.checkpoints import CheckpointError, find
from vall_e.training.curves import Curves
from vall_e.training.feed import _deaf
from vall_e.training.guard import Stop
from vall_e.training.ranks import seed_step

STEPS = {"checkpoint_every": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project trained for 6 steps without a break."""
    root = tmp_path_factory.mktemp("whole")
    make_project(root)
    run(root, params(6, **STEPS))
    return root


def _same(a: Path, b: Path) -> bool:
    one, two = (load_file(root / "models/voice/model.safetensors") for root in (a, b))
    return all(torch.equal(one[name], two[name]) for name in one)


def _work(root: Path) -> Path:
    (folder,) = root.glob(".work/train-*")
    return folder


def _full_disk(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The write of checkpoint ``number`` (from 1) ends half-way."""
    plain, calls = torch.save, []

    def save(value: object, file: object, *args: object) -> None:
        calls.append(0)
        if len(calls) == number:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(value, file, *args)

    monkeypatch.setattr(checkpoints.torch, "save", save)


def test_a_full_disk_leaves_the_checkpoint_before_and_says_where_room_is_missing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path)
    with monkeypatch.context() as patch:
        _full_disk(patch, 3)  # those of steps 0 and 2 are there
        with pytest.raises(CheckpointError) as caught:
            run(tmp_path, params(6, **STEPS))
    said = str(caught.value)
    for part in ("last.ckpt", "step 4", "No space left", "MB are free", "make room", "goes on from step 2 (last.ckpt)"):
        assert part in said, said
    work = _work(tmp_path)
    assert find(work) == (work / "last.ckpt", 2)
    assert sorted(p.name for p in work.glob("*ckpt*")) == ["last.ckpt", "previous.ckpt"]
    assert not (tmp_path / "models/voice").exists()
    run(tmp_path, params(6, **STEPS))
    assert _same(whole, tmp_path)


def test_a_file_system_that_really_refuses_to_write_on_is_named(tmp_path: Path) -> None:
    """A limit of the kernel on the size of files stands in for a full disk; it needs no rights."""
    make_project(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"previous.ckpt: the checkpoint of step 0 .* free there"):
            run(tmp_path, params(6, **STEPS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(_work(tmp_path).glob("*.ckpt"))


def test_curves_that_cannot_be_written_say_where_room_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain = tmp_path / "train.csv", Path.open
    Curves._append(path, [(1, "train", "loss", "2")])

    def full(self: Path, *args: object, **named: object) -> object:
        if self == path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(self, *args, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"train.csv: the learning curves .*No space left.* MB are free .*make room"):
        Curves._append(path, [(2, "train", "loss", "2")])


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_checkpoint_is_refused_aloud_and_the_one_before_serves(
    damage: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    make_project(tmp_path)
    with monkeypatch.context() as patch:
        _full_disk(patch, 4)
        with pytest.raises(CheckpointError):
            run(tmp_path, params(6, **STEPS))
    path = _work(tmp_path) / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "changed" else content[:-100])
    size = path.stat().st_size
    capfd.readouterr()
    run(tmp_path, params(6, **STEPS))
    said = capfd.readouterr().err
    assert f"{path} is damaged ({size} bytes" in said
    assert "training goes on from the one before" in said
    assert _same(whole, tmp_path)


def test_a_run_killed_between_its_last_step_and_its_voice_saves_the_same_voice_and_figures(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_publish", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            run(tmp_path, params(6, **STEPS))
    figures = run(tmp_path, params(6, **STEPS))
    assert _same(whole, tmp_path)
    assert {"train.loss", "val.loss"} <= set(figures)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True])
def test_a_run_that_is_asked_to_end_saves_behind_its_step_and_goes_on_from_there(
    number: signal.Signals, group: bool, tmp_path: Path
) -> None:
    """By a signal to the process, or to its group: a flow that is cancelled, Ctrl-C in a terminal."""
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        make_project(root)
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from tests.training.test_run import params, run; "
        f"run(Path({str(two)!r}), params(40, checkpoint_every=30, loader_workers=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list(two.glob(".work/train-*/previous.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.3)
    (os.killpg if group else os.kill)(process.pid, number)
    said = process.communicate(timeout=200)[1]
    assert process.returncode != 0 and f"{number.name}: a checkpoint after this step" in said, said
    reached = find(_work(two))[1]
    assert 0 < reached < 30  # before the first checkpoint that it would have written anyway
    assert f"stopped at step {reached} of 40" in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left
    if number == signal.SIGTERM:
        for root in (one, two):
            run(root, params(40, checkpoint_every=30))
        assert _same(one, two)


def test_a_new_record_of_a_run_that_goes_on_has_the_steps_before_it(tmp_path: Path) -> None:
    make_project(tmp_path)
    places = tmp_path, tmp_path / "models/voice", tmp_path / "plots/train.csv", tmp_path / ".work"
    config = params(40, checkpoint_every=10)

    def broken(step: int, _: dict[str, float]) -> None:
        if step == 30:
            raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        training.train(config, *places, log=broken)
    told: list[tuple[int, dict[str, float]]] = []
    training.train(config, *places, log=lambda step, figures: told.append((step, figures)))
    assert [step for step, figures in told if "train.loss" in figures] == [10, 20, 30, 40]
    with places[2].open(newline="", encoding="utf-8") as file:
        drawn = {(row["step"], f"{row['split']}.{row['name']}"): row["value"] for row in csv.DictReader(file)}
    again = {(str(step), name): f"{value:.6g}" for step, figures in told for name, value in figures.items()}
    assert drawn.items() <= again.items()


def test_workers_of_the_loader_leave_signals_to_the_process_that_trains(tmp_path: Path) -> None:
    def worker() -> None:
        _deaf(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    process = multiprocessing.get_context("fork").Process(target=worker)
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("usual", [signal.default_int_handler, signal.SIG_IGN], ids=["heard", "ignored"])
def test_signals_are_as_they_were_when_training_has_ended(usual: Any) -> None:
    """What was started in the background, deaf to Ctrl-C, stays so."""
    before = signal.signal(signal.SIGINT, usual)
    try:
        with Stop() as stop:
            stop.listen()
            assert (signal.getsignal(signal.SIGINT) == signal.SIG_IGN) == (usual == signal.SIG_IGN)
            assert signal.getsignal(signal.SIGTERM) == stop._note
        assert signal.getsignal(signal.SIGINT) == usual and signal.getsignal(signal.SIGTERM) != stop._note
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_step_draws_depends_on_nothing_before_it() -> None:
    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002

    seed_step(3, 7)
    first = draw()
    draw()
    seed_step(3, 7)
    assert draw() == first
    for other in ((3, 8), (4, 7), (3, 7, 1, 2)):
        seed_step(*other)
        assert not set(draw()) & set(first)
