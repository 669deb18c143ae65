"""``vall-e runs`` on a SQLite store: what is listed, what differs, what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from pathlib import Path

import pytest

from stages import runs, tracking
from vall_e.cli import main
from vall_e.config import TrackingConfig
from vall_e.usage import UsageError


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> tuple[Path, list[str]]:
    """A project's folder with data, three trainings, the last of which failed, and their ids."""
    root = tmp_path_factory.mktemp("runs")
    (root / "params.yaml").write_text("profile: tiny\n")
    config, ids = TrackingConfig(), []
    data = tracking.start(config, root, "encode", "tiny", "data")
    data.wrote("data/encode", "ab" * 32, "ab.dir")
    data.close()
    for number, (kind, wer) in enumerate((("ar-depth", 0.25), ("nar-len", None), ("ar", 0.1))):
        run = tracking.start(config, root, "train", "tiny", started=1e9 + number)
        run.params({"model": {"kind": kind, "dim": 32}, "codec": {"name": "mel"}, "train": {"lr": 0.1 * (number + 1)}})
        run.read("data/encode", "ab" * 32)
        run.metrics({"steps": 1200, "seconds": 61.5})
        if wer is not None:
            run.metrics({"eval": {"wer": {"model": {"value": wer, "low": wer - 0.05, "high": wer + 0.05}}}})
        run.trained("tiny")
        run.close("ValueError: no" if number == 2 else None)
        ids.append(run.id)
    return root, [*ids, data.id]


@pytest.fixture
def call(store, monkeypatch, capsys):
    monkeypatch.chdir(store[0])

    def run(*arguments: str) -> str:
        assert main(["runs", *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_trainings_are_listed_newest_first_without_those_that_failed(call, store):
    head, *rows = call("list").splitlines()
    assert head.split()[:6] == ["run", "profile", "started", "status", "kind", "codec"]
    assert [row.split()[0] for row in rows] == [store[1][1][:8], store[1][0][:8]]
    assert "0.250 [0.200, 0.300]" in rows[1] and "nar-len" in rows[0] and "1,200" in rows[0]
    assert len(call("list", "--last", "1").splitlines()) == 2


def test_runs_side_by_side_show_the_parameters_that_differ_and_no_other(call, store):
    first, second = store[1][:2]
    text = call("compare", first[:10], second)
    table, differ = text.split("\n\n")
    assert len(table.splitlines()) == 3
    names = [line.split()[0] for line in differ.splitlines()]
    assert names == ["parameter", "model.kind", "train.lr"]
    assert differ.splitlines()[1].split() == ["model.kind", "ar-depth", "nar-len"]


def test_json_and_csv_say_the_same(call, store):
    told = json.loads(call("compare", "--json"))
    lines = list(csv.DictReader(io.StringIO(call("compare", "--csv"))))
    assert [row["run"] for row in told["runs"]] == [line["run"] for line in lines] == [store[1][1], store[1][0]]
    assert told["runs"][1]["wer"] == float(lines[1]["wer"]) == 0.25
    assert told["runs"][0]["wer"] is None and lines[0]["wer"] == ""
    assert told["runs"][1]["intervals"]["wer"] == [float(lines[1][f"wer_{end}"]) for end in ("low", "high")]
    assert told["differences"]["model.kind"] == [line["model.kind"] for line in lines] == ["nar-len", "ar-depth"]
    assert "model.dim" not in lines[0]


def test_a_run_shows_its_data_and_data_shows_its_trainings(call, store):
    first, second, third, data = store[1]
    assert f"from      {data}" in call("show", first)
    shown = call("show", data)
    assert all(f"trained   {run_id}" in shown for run_id in (first, second, third))


def test_a_commit_leads_to_the_training_that_made_its_voice(call, store, monkeypatch):
    """A commit is made after the run, which knows only the one before: what both know is DVC's hash of the voice."""
    root, (first, second, third, _) = store
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@localhost"]

    def commit(text: str) -> str:
        Path("dvc.lock").write_text(text)
        for words in (["init", "-q", "."], ["add", "dvc.lock"], ["commit", "-qm", "one"]):
            subprocess.run([*git, *words], check=True, cwd=root)
        return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, cwd=root).stdout.strip()

    client, _ = tracking.open_store(TrackingConfig(), root)
    tracking.Run(client, second).wrote("models/voice", "cd" * 32, "ef.dir")
    before = commit("schema: '2.0'\n")
    client.set_tag(first, "mlflow.source.git.commit", before)
    after = commit("stages:\n  train:\n    outs:\n    - {path: models/voice, hash: md5, md5: ef.dir}\n")
    assert call("show", after).startswith(second) and call("show", "HEAD").startswith(second)
    assert call("show", before[:12]).startswith(first)
    client.set_tag(third, "mlflow.source.git.commit", before)
    with pytest.raises(UsageError, match=f"several runs are meant, name one of {third[:12]}.*{first[:12]}"):
        runs.main(["show", before])


@pytest.mark.parametrize(
    "arguments, why",
    [
        (("compare", "zzzz"), "'zzzz' names no run"),
        (("compare", "0000"), "'0000' names no run"),
        (("show", "nobody@champion"), "nobody@champion: "),
        (("list", "--last", "0"), "--last 0: at least one"),
    ],
)
def test_wrong_names_are_said_in_one_line(store, monkeypatch, capsys, arguments, why):
    monkeypatch.chdir(store[0])
    assert main(["runs", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vall-e: ") and why in error and error.count("\n") == 1


def test_without_records_it_says_how_to_get_some_and_makes_no_database(tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text("profile: tiny\n")
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "list"]) == 2
    assert "`dvc repro` makes them" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["params.yaml"]
