"""What is found out before a training, each fault on data that have it."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages import preflight as command
from tests.tiny import CODES, LEVELS
from tests.training.test_course import small_machine
from tests.training.test_run import make_project, params, run
from tests.training.test_unfinished import killed
from vall_e.config import Params
from vall_e.corpus.schema import CODES as SCHEMA
from vall_e.corpus.schema import read_rows, write_table
from vall_e.training import preflight
from vall_e.training.checkpoints import sizes
from vall_e.training.plan import describe
from vall_e.training.preflight import Check, PreflightError, demand, failed, inspect, rehearses, table
from vall_e.training.rehearsal import rehearse

Usage = namedtuple("Usage", "total used free")
SIZES = ("weights", "average", "total")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path)
    return tmp_path


def _checks(root: Path, settings: Params | None = None) -> dict[str, Check]:
    return {check.name: check for check in inspect(settings or params(), root, root / ".work")}


def _change(root: Path, change: Callable[[dict], object]) -> None:
    """Change the rows of a second shard."""
    rows = read_rows(root / "data/encode/shard-00000.parquet", SCHEMA)
    for row in rows:
        row["id"] += "-2"
    change(rows[7])
    write_table(rows, SCHEMA, root / "data/encode/shard-00001.parquet")


def test_sound_data_pass_and_the_table_says_how_much_there_is(project: Path) -> None:
    checks = _checks(project)
    assert {check.state for check in checks.values()} == {"ok"}
    assert checks["shards"].detail == f"1 with 30 rows, {LEVELS} levels of {CODES} codes"
    assert checks["lengths"].detail.startswith("26 utterances, 0.00 h; 50 % 0.1 s")
    text = table(list(checks.values()))
    assert len(text.splitlines()) == len(checks) and "MB are free" in text


@pytest.mark.parametrize("change, name, said", [
    (lambda row: row["codes"].__setitem__(2, CODES), "shards", f"codes from 0 to {CODES}, and the codec has 0 to 10"),
    (lambda row: row["codes"].__setitem__(2, -1), "shards", "holds codes from -1 to"),
    (lambda row: row["codes"].pop(), "shards", r"shard-00001.parquet holds [\d,]+ codes, and its rows say"),
    (lambda row: row.update(levels=2), "shards", "has rows of 2 levels, and codec.json says 3"),
    (lambda row: row.update(phones=["a", "ʘ", "ʘ"]), "phones", r"does not know 'ʘ' 2 times \(d\): run the phonemize"),
])  # fmt: skip
def test_every_shard_is_looked_into(project: Path, change: Callable[[dict], object], name: str, said: str) -> None:
    _change(project, change)
    found = _checks(project)[name]
    assert found.state == "fails"
    with pytest.raises(PreflightError, match=f"{name}: .*{said}"):
        demand([found])


def test_a_shard_that_is_no_table_is_named(project: Path) -> None:
    (project / "data/encode/shard-00001.parquet").write_bytes(b"PAR1 and no more")
    assert "shard-00001.parquet" in _checks(project)["shards"].detail
    assert [check.name for check in failed(list(_checks(project).values()))] == ["shards"]


def test_long_rows_and_what_is_left_out_are_worth_a_word(project: Path) -> None:
    checks = _checks(project, params(batch_frames=10))
    assert checks["rows"].state == "mind" and "26 rows (100.0%)" in checks["rows"].detail
    _change(project, lambda row: row.update(frames=1000, codes=[1] * 3000))
    found = _checks(project)["lengths"]
    assert found.state == "mind" and "1 (1.9%) above train.max_response_seconds" in found.detail
    assert _checks(project, params(max_response_seconds=0.01))["lengths"].state == "fails"


def test_a_full_disk_is_told_before(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**3))
    found = _checks(project)["disk"]
    assert found.state == "fails" and "0 MB are free" in found.detail and "make room" in found.detail


def test_what_a_run_has_written_already_counts_as_room(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = params(6)
    killed(project, settings, step=5)
    (work,) = project.glob(".work/train-*")
    checkpoint, held = (size / 2**20 for size in sizes(work))
    assert held > 2 * checkpoint  # two of them, and the curves
    voices = 2 * describe(settings, phones=8)["megabytes"]["weights"]
    codec = 2 * sum(file.stat().st_size for file in (project / "models/codec").iterdir()) / 2**20

    def state(free: float) -> str:
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: Usage(10**9, 0, free * 2**20))
        return _checks(project, settings)["disk"].state

    needed = checkpoint + voices + codec  # the third one
    assert state(needed + 0.01) == "ok" and state(needed - 0.05) == "fails"
    state(0)
    found = _checks(project, params(7))["disk"]
    assert found.state == "fails" and f"make room or remove {work} (of other settings)" in found.detail


def test_rows_of_joined_clips_count_and_those_that_are_left_out_do_not(project: Path) -> None:
    def detail(**changes: object) -> str:
        return _checks(project, params(**changes))["rows"].detail

    beside = 10 + 6  # the prompt
    assert f"the longest row has {9 + 1 + beside} positions" in detail(join=None)
    assert f"the longest row has {7 + 1 + beside} positions" in detail(join=None, max_response_seconds=0.15)
    joined = params(batch_frames=60, join={"max_clips": 5, "max_seconds": None})
    found = _checks(project, joined)["rows"]
    assert found.state == "mind"
    longest = 5 * 9 + 4 * 6 + 5 + 4 + beside  # clips and pauses, phones and the gaps between them
    assert f"rows of joined clips have up to {longest} positions" in found.detail
    bounded = {"max_clips": 5, "max_seconds": 0.2}
    assert f"up to {10 + 4 * 6 + 5 + 4 + beside} positions" in detail(join=bounded)
    stages = [{"until": 4, "join": {"max_clips": 5}}]
    assert f"up to {longest} positions" in detail(join=None, stages=stages)


def test_the_memory_that_is_compared_is_of_the_device_and_the_container(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(preflight, "memory_mb", lambda device: asked.append(device) or 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = _checks(project, params(device="cpu"))["memory"]
    assert asked == ["cpu"] and "at most" not in found.detail and "attention's scores" in found.detail
    monkeypatch.setattr(preflight, "describe", lambda *_: describe(params()) | {"megabytes": dict.fromkeys(SIZES, 9)})
    assert _checks(project, params(device="cpu"))["memory"].state == "mind"


LONG = {"max_steps": 10**9, "device": "cpu", "compile": False}


def test_a_long_training_that_begins_is_rehearsed_and_one_that_goes_on_is_not(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    work = project / ".work"
    assert not rehearses(params(8), project, work)
    assert rehearses(params(8, preflight={"overfit_steps": 1}), project, work)
    shared = {"strategy": "fsdp", "optimizer": "adamw", "ema_decay": 0.0}
    assert not rehearses(params(**LONG, **shared), project, work)
    assert not rehearses(params(**LONG, preflight={"overfit_steps": 0}), project, work)
    command.at_the_start(params(**LONG, lr=0.01))
    said = capsys.readouterr().err
    assert "one batch" in said and "peak memory" in said and "1,000,000,000 steps take" in said
    killed(project, params(**LONG, lr=0.01), step=3)
    command.at_the_start(params(**LONG, lr=0.01))
    assert "one batch" not in capsys.readouterr().err


def test_the_rehearsed_batch_is_the_largest_of_the_last_ones_of_every_phase(project: Path) -> None:
    def shape(**changes: object) -> tuple[int, int]:
        settings = params(200, preflight={"overfit_steps": 1}, **changes)
        checks, _ = rehearse(settings, project, project / ".work", project / "models/voice")
        rows, _, positions = checks[-1].detail.split()[-4:-1]
        return int(rows), int(positions)

    grown = {"min_clips": 5, "max_clips": 5}
    joined, plain = shape(join=grown), shape(join=None)
    assert shape(join=grown | {"curriculum_steps": 100}) == joined and joined[1] > plain[1]
    assert prod(shape(join=None, stages=[{"until": 40, "join": grown}])) >= max(prod(joined), prod(plain))


def test_a_batch_that_does_not_fit_is_said_and_stops_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_machine(monkeypatch, 8)
    checks, figures = rehearse(params(2), project, project / ".work", project / "models/voice")
    assert [(check.name, check.state) for check in checks] == [("peak memory", "mind")] and not figures
    assert "do not fit: training takes batches in pieces" in checks[0].detail


def test_a_rehearsal_learns_one_batch_and_changes_nothing(project: Path) -> None:
    settings = params(2, lr=0.01)
    run(project, settings)
    first = load_file(project / "models/voice/model.safetensors")
    before = torch.get_rng_state()
    checks, figures = rehearse(settings, project, project / ".work", project / "models/voice")
    assert torch.equal(before, torch.get_rng_state())
    assert [check.state for check in checks] == ["ok", "ok", "ok"]
    assert figures["last_loss"] < 0.9 * figures["first_loss"] and figures["steps"] == 20
    assert figures["hours"] == pytest.approx(figures["seconds_per_step"] * 2 / 3600) and figures["peak_mb"] > 50
    run(project, settings)
    again = load_file(project / "models/voice/model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_batch_that_is_not_learned_fails_with_its_figures(project: Path) -> None:
    settings = params(2, lr=1e-9, muon_lr=1e-9, weight_decay=0.0, preflight={"overfit_steps": 6})
    check = rehearse(settings, project, project / ".work", project / "models/voice")[0][0]
    assert check.state == "fails" and "in 6 steps" in check.detail and "10% are wanted" in check.detail
    run(project, params(1))
    (project / "models/voice").rename(project / "models/base")
    on = params(2, lr=1e-9, muon_lr=1e-9, weight_decay=0.0, preflight={"overfit_steps": 6}, init_from="models/base")
    assert rehearse(on, project, project / ".work", project / "models/voice")[0][0].state == "mind"
    rushed = params(2, lr=1e-9, muon_lr=1e-9, weight_decay=0.0, preflight={"overfit_steps": 2})
    assert rehearse(rushed, project, project / ".work", project / "models/voice")[0][0].state == "mind"


def test_the_command(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(project)
    settings = params(2, preflight={"overfit_steps": 6, "min_fall": 0.0})
    (project / "params.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    assert command.main(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"] and said["figures"]["steps"] == 6
    assert [check["name"] for check in said["checks"]][-3:] == ["one batch", "time", "peak memory"]
    command.at_the_start(settings)
    assert "one batch" in capsys.readouterr().err
    _change(project, lambda row: row["codes"].__setitem__(0, CODES))
    assert command.main(["--quick"]) == 1
    assert capsys.readouterr().out.startswith("fails  shards")
    with pytest.raises(PreflightError, match="shards"):
        command.at_the_start(settings)
