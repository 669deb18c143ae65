from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from pipelines.command import StageFailed
from stages import runner, train
from stages.recorder import TrackingError
from stages.refusal import FAILED, REFUSED
from stages.runner import Stage
from tests.processes import exit_code
from vall_e.config import ConfigError
from vall_e.corpus.quality import check_reject_rate, reject, write_rejects
from vall_e.corpus.schema import REJECTS, read_rows
from vall_e.preparation import SimilarConfig


class _Record:
    """Stands in for an MLflow run and remembers what it is told."""

    def __init__(self):
        self.id, self.parent_id, self.told = "r" * 32, None, {}

    def params(self, values):
        self.told["params"] = values

    def metrics(self, values, step=0):
        self.told["metrics"] = dict(values)

    def read(self, path, digest):
        self.told[f"read {path}"] = digest

    def wrote(self, path, digest, dvc_hash):
        self.told[f"wrote {path}"] = digest

    def tags(self, values, parent=False):
        self.told.setdefault("tags", {}).update(values)

    def artifact(self, path, folder=None, parent=False):
        self.told.setdefault("artifacts", []).append((str(path), folder, parent))


@pytest.fixture
def record(tmp_path, monkeypatch, project_root) -> _Record:
    """A folder with the project's parameters as working directory, and a record in MLflow's place."""
    shutil.copy(project_root / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    told = _Record()

    @contextmanager
    def recorder(*args):
        told.told["training_run"] = args[-1]
        yield told

    monkeypatch.setattr(runner, "Recorder", recorder)
    return told


def _stage(run, **more) -> Stage:
    settings = {"params": ("similar",), "writes": ("data/similar",), "torch_seed": False} | more
    return Stage("similar", "About.", run, **settings)


def test_outs_figures_and_record(record, capsys):
    def run(context):
        (context.out("data/similar") / "table").write_text("rows")
        assert not Path("data/similar").exists()
        return {"kept": 1234, "rejected": {"short": 2, "clipped": 1}, "hours": 0.123456789}

    assert runner.main(_stage(run), []) == 0
    assert Path("data/similar/table").read_text() == "rows"
    assert [p.name for p in Path("data").iterdir()] == ["similar"]
    figures = json.loads(Path("metrics/similar.json").read_text())
    assert (
        figures["rejected"] == {"short": 2, "clipped": 1} and figures["hours"] == 0.123457 and figures["seconds"] >= 0
    )
    line = capsys.readouterr().out.strip()
    assert line.startswith("similar: 1,234 kept · 3 rejected (short 2, clipped 1) · hours 0.1235 · 0.")
    assert record.told["params"]["similar"] == SimilarConfig().model_dump()
    assert record.told["params"]["profile"] == "demo"
    assert len(record.told["wrote data/similar"]) == 64


def test_what_a_stage_publishes_is_on_the_disk_before_it_has_its_name(record, monkeypatch):
    """Else a power cut may leave an empty file under the name, which DVC would take for whole."""
    synced, plain = [], os.fsync

    def fsync(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append((path.name, Path("data/similar").exists(), Path("metrics/similar.json").exists()))
        plain(handle)

    def run(context):
        (context.out("data/similar") / "waves").mkdir()
        (context.out("data/similar") / "waves" / "one").write_text("whole")
        return {}

    monkeypatch.setattr(os, "fsync", fsync)
    assert runner.main(_stage(run), []) == 0
    names = [name for name, *_ in synced]
    assert names[:4] == ["one", "waves", ".similar.building", "data"] and names[-1] == "metrics"
    assert [there for _, there, _ in synced] == [False] * 3 + [True] * 3
    assert [there for *_, there in synced] == [False] * 5 + [True]


def test_a_run_keeps_its_parameters_and_what_dvc_had_made(record):
    Path("dvc.lock").write_text("schema: '2.0'\n")
    assert runner.main(_stage(lambda context: {}), []) == 0
    kept = [("params.yaml", "pipeline", False), ("dvc.lock", "pipeline", True)]
    assert record.told["artifacts"][:2] == kept
    assert record.told["tags"] == {
        f"digest.{name}": hashlib.sha256(Path(name).read_bytes()).hexdigest() for name, *_ in kept
    }


@pytest.mark.parametrize(
    "reads, writes, purpose",
    [((), ("data/encode",), "data"), (("models/voice",), (), "model"), ((), ("models/voice",), "model")],
)
def test_runs_on_data_and_on_models_are_kept_apart(reads, writes, purpose):
    assert _stage(lambda context: {}, reads=reads, writes=writes).purpose == purpose


def test_a_failed_stage_leaves_its_old_outs_alone_and_says_one_line(record, capsys):
    Path("data/similar").mkdir(parents=True)
    Path("data/similar/table").write_text("old")

    def run(context):
        (context.out("data/similar") / "table").write_text("half")
        raise FileNotFoundError("recordings/a.wav is not there: check ingest.path")

    assert runner.main(_stage(run), []) == REFUSED
    assert Path("data/similar/table").read_text() == "old"
    assert not Path("metrics/similar.json").exists()
    assert capsys.readouterr().err == "similar: error: recordings/a.wav is not there: check ingest.path\n"


def test_too_many_rejects_name_the_rules_in_one_line_and_where_all_rows_are(record, capsys):
    def run(context):
        rows = [reject("a", "similar", "silent", "-70 dB", "-60"), reject("b", "similar", "clipped", "0.5")]
        write_rejects(rows, context.out("data/similar") / "rejects.parquet")
        check_reject_rate(1, 2, 0.2, "similar", rows)

    assert runner.main(_stage(run), []) == REFUSED
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("similar: error: ") and "(clipped 1, silent 1)" in first and "max_reject_rate 0.2" in first
    assert any("silent 1, for example a: -70 dB (allowed: -60)" in line for line in rest)
    place = rest[-1].split("every reject is a row of ")[1]
    assert [row["rule"] for row in read_rows(place, REJECTS)] == ["silent", "clipped"]


def _behind(said: Exception, cause: Exception) -> Exception:
    said.__cause__ = cause
    return said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("train.lr: -1"), REFUSED),
        (PermissionError(13, "may not be opened"), REFUSED),
        (ImportError("pip install ray"), REFUSED),
        (_behind(ValueError("weights of another shape"), RuntimeError("size mismatch")), REFUSED),
        (OSError(5, "Input/output error"), FAILED),
        (ConnectionError("the hub does not answer"), FAILED),
        (_behind(FileNotFoundError("the weights are not reachable"), TimeoutError()), FAILED),
        (TrackingError("MLflow has no record"), FAILED),
        (_behind(ValueError("Run again: all 2 processes go on so"), MemoryError()), FAILED),
        (_behind(ValueError("Run again"), RuntimeError("DefaultCPUAllocator: not enough memory")), FAILED),
    ],
)
def test_what_a_second_try_may_mend_is_told_from_what_it_cannot(record, capsys, error, code):
    def run(context):
        raise error

    assert runner.main(_stage(run), []) == code
    said = capsys.readouterr().err
    assert said.startswith("similar: error: " if code == REFUSED else "similar: failed: ")
    assert StageFailed("similar", 255, ["Running stage", said.rstrip()]).input_error == (code == REFUSED)


def test_debug_shows_the_traceback(record, monkeypatch):
    def run(context):
        raise ValueError("why")

    monkeypatch.setenv("VALL_E_DEBUG", "1")
    with pytest.raises(ValueError, match="why"):
        runner.main(_stage(run), [])


def test_a_missing_input_names_the_command(record, capsys):
    assert runner.main(_stage(lambda context: {}, reads=("data/encode",)), []) == REFUSED
    assert "data/encode is not there: run `dvc repro similar`" in capsys.readouterr().err


def test_wrong_parameters_are_an_error_before_any_work(record, capsys):
    Path("params.yaml").write_text("similar: {topk: 3}\n")
    assert runner.main(_stage(lambda context: pytest.fail("it ran")), []) == REFUSED
    assert "similar.topk: unknown key" in capsys.readouterr().err


def test_a_stage_of_a_model_logs_into_its_training_run(record):
    Path("models/voice").mkdir(parents=True)
    Path("models/voice/run.json").write_text('{"run_id": "abc"}')
    runner.main(_stage(lambda context: {}, reads=("models/voice",)), [])
    assert record.told["training_run"] == "abc"
    runner.main(_stage(lambda context: {}), [])
    assert record.told["training_run"] is None


@pytest.mark.parametrize(
    ("environment", "leads"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),  # as Lightning starts it
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),  # as torchrun does on another machine
    ],
)
def test_only_rank_0_of_a_training_opens_a_record_and_publishes(record, monkeypatch, environment, leads):
    trained, opened, recorder = [], [], runner.Recorder
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, rank in environment.items():
        monkeypatch.setenv(name, rank)
    for path in (*train.STAGE.reads, *train.STAGE.writes):
        Path(path).mkdir(parents=True)
        (Path(path) / "old").touch()
    monkeypatch.setattr(runner, "Recorder", lambda *words: opened.append(words) or recorder(*words))
    monkeypatch.setattr("stages.preflight.at_the_start", lambda params: None)
    monkeypatch.setattr(train, "_audition", lambda stage: None)
    monkeypatch.setattr("vall_e.training.run.train", lambda *places, **told: trained.append(told) or {})
    monkeypatch.setattr(_Record, "log", print, raising=False)
    monkeypatch.setattr(_Record, "trained", lambda *_: None, raising=False)
    assert runner.main(train.STAGE, []) == 0
    assert len(opened) == int(leads) and len(trained) == 1
    assert set(trained[0]) == ({"log", "live", "show"} if leads else set())
    assert Path("metrics/train.json").exists() == leads
    assert [Path(path, "old").exists() for path in train.STAGE.writes] == [not leads] * 2
    assert not list(Path(".").rglob("*.building"))


def test_random_numbers_are_seeded(record):
    import random

    import numpy as np

    drawn = []
    for _ in range(2):
        drawn_here = lambda context: drawn.append((random.random(), np.random.rand())) or {}  # noqa: E731, NPY002
        runner.main(_stage(drawn_here), [])
    assert drawn[0] == drawn[1]


def _die_while_building(folder: Path) -> None:
    def run(context):
        (context.out("data/similar") / "table").write_text("half")
        os._exit(9)

    os.chdir(folder)
    runner.Recorder = lambda *_: nullcontext(_Record())
    runner.main(_stage(run), [])


def test_a_kill_between_build_and_rename_leaves_no_half_folder(record):
    """A process that dies by a signal runs no clean-up: what counts is that the out folder is not there."""

    assert exit_code(_die_while_building, Path.cwd()) == 9
    assert not Path("data/similar").exists()
    assert runner.main(_stage(lambda context: {}), []) == 0
    assert list(Path("data/similar").iterdir()) == []
