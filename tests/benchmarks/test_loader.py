"""The benchmark of the loader on a corpus of some hundred utterances: keys, counts, what a wrong loader changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.loader import __main__ as command
from benchmarks.loader.corpus import A_SPEAKER, Sizes, load, write
from vall_e.corpus.schema import CODES, SIMILAR

SIZES = Sizes(levels=2, codes=16, seconds=(0.2, 0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loader")
    write(root, 1100, SIZES)
    return root


def test_the_generated_corpus_is_one_that_stages_could_have_left(folder: Path) -> None:
    shards = [pq.read_table(path) for path in sorted(folder.glob("encode/shard-*.parquet"))]
    assert [len(shard) for shard in shards] == [1000, 100] and shards[0].schema.names == CODES.names
    for row in shards[1].slice(0, 20).to_pylist():
        assert len(row["codes"]) == SIZES.levels * row["frames"] and 0 <= min(row["codes"]) <= max(row["codes"]) < 16
        assert row["frames"] == round(row["seconds"] * 75) and row["speaker"] == f"s{int(row['id'][1:]) // A_SPEAKER}"
    near = pq.read_table(folder / "similar.parquet", schema=SIMILAR).to_pylist()
    assert len(near) == 1100
    for row in near:
        owner = int(row["id"][1:]) // A_SPEAKER
        assert {int(name[1:]) // A_SPEAKER for name in row["neighbours"]} == {owner}
    corpus = load(folder)
    assert len(corpus.utterances) == 1100
    assert len({utterance.speaker for utterance in corpus.utterances}) == 6


def test_batches_that_differ_in_one_code_are_not_the_same(folder: Path) -> None:
    batches = command.loader(load(folder))
    whole = command.feed(batches, 0, 2, 0)
    assert command.same(whole, command.feed(command.loader(load(folder)), 0, 2, 0)) and len(whole) == 2
    assert not command.same(whole, whole[:1]) and not command.same(whole, whole[::-1])
    other = command.feed(batches, 0, 2, 0)
    other[1].symbol[0, 0] += 1
    assert not command.same(whole, other)


@pytest.mark.slow
def test_the_report_has_its_keys_and_its_counts(tmp_path: Path) -> None:
    small = "import sys; from benchmarks.loader import __main__ as m; m.FRAMES = 2000; sys.exit(m.main())"
    sizes = ["--utterances", "600", "--small", "300", "--pools", "1", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", small, *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    keys = ["open_s", "open_mb", "samples_per_s", "per_sample_1m_over_10k", "two_workers_in_step", "resume_identical"]
    assert list(report) == [*keys, "details"]
    assert report["two_workers_in_step"] is report["resume_identical"] is True
    assert all(report[key] > 0 for key in ("open_s", "samples_per_s", "per_sample_1m_over_10k"))
    details = report["details"]
    assert (details["utterances"], details["small"]) == (600, 300) and 0 <= details["padding_share"] < 0.5
    assert list(tmp_path.iterdir()) == [], "the generated corpus is gone"
