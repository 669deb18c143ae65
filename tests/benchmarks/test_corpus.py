"""The benchmark of the data stages on the smallest of corpora: keys, what is counted rather than timed, refusals."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from benchmarks.corpus import __main__ as command
from benchmarks.corpus import kills as killing
from benchmarks.corpus import loop, stages
from benchmarks.corpus.bench import Bench, begun
from benchmarks.corpus.kills import kills
from benchmarks.corpus.loop import encode_over_loop
from tests.corpus.test_encode import Corpus
from vall_e.config import parse_params


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """What the stages before encode left of sixteen recordings."""
    corpus = Corpus(tmp_path, 16)
    corpus.write()
    places = {"manifest": "data/quality/manifest.parquet", "phones": "data/phonemize/phones.parquet"}
    for name, place in places.items():
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / f"{name}.parquet").rename(tmp_path / place)
    (tmp_path / "models").mkdir()
    (tmp_path / "codec").rename(tmp_path / "models/codec")
    return Bench(tmp_path, parse_params({}), rounds=1, runs=1)


def test_the_loop_and_the_stage_make_the_same_codes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = encode_over_loop(bench)
    shown = bench.details["encode_over_loop"]
    assert set(shown) == {"mel", "encodec"} and ratio == min(codec["ratio"] for codec in shown.values()) > 0
    theirs = loop._TheirEncodec.load(bench.home / "encodec").model
    assert sum(name.endswith("weight_g") for name, _ in theirs.named_parameters()) > 30
    monkeypatch.setattr(loop, "_loop", lambda bench, *_: None)
    bench.home.joinpath("loop.parquet").write_bytes(next(bench.home.glob("out/shard-*")).read_bytes())
    with pytest.raises(RuntimeError, match="different codes"):
        encode_over_loop(bench)


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(bench: Bench) -> None:
    figures = kills(bench)
    assert figures.pop("shards_redone_max") in (0, 1)  # none where it was killed between two
    assert figures == {"runs": 1, "identical": True, "at_most_one_a_worker": True}
    (run,) = bench.details["kills"]["runs"]
    assert run["workers"] == 1 >= run["redone"] and 0 <= run["finished"] <= 8


def test_a_shard_that_is_done_again_counts_whether_it_was_finished_or_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that only note what they begin: two shards before the kill, one of them and another behind it."""
    notes = iter([["a", "b", "c"], ["a", "b"], ["b", "c"]])

    class Over:
        wait = staticmethod(lambda: 0)

    def started(bench: Bench, workers: int, out: Path, **settings: object) -> Over:
        out.mkdir(exist_ok=True)
        (out / "shard-00000.parquet").touch()
        begun(out).write_text("".join(f"{i} {name}\n" for i, name in enumerate(next(notes))))
        return Over()

    monkeypatch.setattr(killing, "ready", lambda bench: None)
    monkeypatch.setattr(killing, "started", started)
    monkeypatch.setattr(killing, "_kill", lambda process, out, seconds: True)
    assert kills(bench)["shards_redone_max"] == 1
    assert bench.details["kills"]["runs"][0]["redone"] == 1


def test_the_report_has_the_key_of_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "make_bench", lambda home, *_: Bench(home, parse_params({}), 1, 1))
    assert set(command.FIGURES) == {"hours_per_hour", "encode_over_loop", "second_worker", "kills"}
    monkeypatch.setattr(command, "FIGURES", dict.fromkeys(command.FIGURES, lambda bench: 1.0))
    assert command.main(["--only", "kills,second_worker", "--source", "espeak", "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["second_worker", "kills", "details"]
    assert json.loads((tmp_path / "corpus.json").read_text()) == report
    with pytest.raises(ArgumentTypeError, match="no figure speed"):
        command.names("speed")


def test_stages_are_those_before_training() -> None:
    expected = ["ingest", "transcribe", "quality", "phonemize", "fit_codec", "encode", "similar", "card"]
    assert stages.data_stages() == expected


def test_a_stage_that_fails_says_why(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.home / "params.yaml").write_text("ingest: {source: nowhere}\n")
    with pytest.raises(RuntimeError, match="(?s)stage ingest failed.*nowhere"):
        stages.hours_per_hour(bench)
