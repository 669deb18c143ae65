from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages import runner
from stages.runner import Stage


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

    def wrote(self, path, digest):
        self.told[f"wrote {path}"] = digest

    def artifact(self, path, folder=None, parent=False):
        pass


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
    assert record.told["params"]["similar"] == {"feature": "mfcc", "voice": None, "top_k": 5}
    assert record.told["params"]["profile"] == "demo"
    assert len(record.told["wrote data/similar"]) == 64


def test_a_failed_stage_leaves_its_old_outs_alone_and_says_one_line(record, capsys):
    Path("data/similar").mkdir(parents=True)
    Path("data/similar/table").write_text("old")

    def run(context):
        (context.out("data/similar") / "table").write_text("half")
        raise FileNotFoundError("recordings/a.wav is not there: check ingest.path")

    assert runner.main(_stage(run), []) == 1
    assert Path("data/similar/table").read_text() == "old"
    assert not Path("metrics/similar.json").exists()
    assert capsys.readouterr().err == "similar: error: recordings/a.wav is not there: check ingest.path\n"


def test_debug_shows_the_traceback(record, monkeypatch):
    def run(context):
        raise ValueError("why")

    monkeypatch.setenv("VALL_E_DEBUG", "1")
    with pytest.raises(ValueError, match="why"):
        runner.main(_stage(run), [])


def test_a_missing_input_names_the_command(record, capsys):
    assert runner.main(_stage(lambda context: {}, reads=("data/encode",)), []) == 1
    assert "data/encode is not there: run `dvc repro similar`" in capsys.readouterr().err


def test_wrong_parameters_are_an_error_before_any_work(record, capsys):
    Path("params.yaml").write_text("similar: {topk: 3}\n")
    assert runner.main(_stage(lambda context: pytest.fail("it ran")), []) == 1
    assert "similar.topk: unknown key" in capsys.readouterr().err


def test_a_stage_of_a_model_logs_into_its_training_run(record):
    Path("models/voice").mkdir(parents=True)
    Path("models/voice/run.json").write_text('{"run_id": "abc"}')
    runner.main(_stage(lambda context: {}, reads=("models/voice",)), [])
    assert record.told["training_run"] == "abc"
    runner.main(_stage(lambda context: {}), [])
    assert record.told["training_run"] is None


def test_random_numbers_are_seeded(record):
    import random

    import numpy as np

    drawn = []
    for _ in range(2):
        drawn_here = lambda context: drawn.append((random.random(), np.random.rand())) or {}  # noqa: E731, NPY002
        runner.main(_stage(drawn_here), [])
    assert drawn[0] == drawn[1]


def test_a_kill_between_build_and_rename_leaves_no_half_folder(record):
    """A process that dies by a signal runs no clean-up: what counts is that the out folder is not there."""

    def run(context):
        (context.out("data/similar") / "table").write_text("half")
        os._exit(9)

    if (child := os.fork()) == 0:
        runner.main(_stage(run), [])
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert not Path("data/similar").exists()
    assert runner.main(_stage(lambda context: {}), []) == 0
    assert list(Path("data/similar").iterdir()) == []
