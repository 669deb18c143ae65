"""The quality stage: everything measured once, every drop explained, thresholds cheap, splits without leaks."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.corpus.test_encode import contents
from tests.corpus.test_fingerprints import RATE, coded, take
from vall_e.audio import load
from vall_e.config import ConfigError, Params, parse_params
from vall_e.corpus import screen as module
from vall_e.corpus.clips import copies
from vall_e.corpus.quality import RejectRateError
from vall_e.corpus.schema import MANIFEST, MEASURES, REJECTS, TRANSCRIPTS, UTTERANCES, read_rows, write_table
from vall_e.corpus.screen import screen
from vall_e.corpus.splits import Candidate, assign
from vall_e.preparation import EncodeConfig, SplitConfig


class Corpus:
    """Twelve takes of four words by two speakers, each with silence around it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recordings, self.texts = folder, [], []
        for index in range(12):
            wav = np.pad(take(index, 0), (4000, 6000))
            self.add(f"u{index:02d}", wav, speaker=f"s{index % 2}", text=f"word {index % 4}")

    def add(self, name: str, wav: np.ndarray, rate: int = RATE, speaker: str = "s0", text: str = "other") -> None:
        path = self.folder / f"{name}.wav"
        soundfile.write(path, wav, rate, subtype="FLOAT")
        self.recordings.append({
            "id": name, "path": str(path), "speaker": speaker, "text": text, "language": "en-us",
            "seconds": len(wav) / rate, "sample_rate": rate, "channels": 1, "digest": name,
        })  # fmt: skip
        self.texts.append({
            "id": name, "recording": name, "start": 0.0, "end": len(wav) / rate, "speaker": speaker, "text": text,
            "origin": "given", "language": "en-us",
        })  # fmt: skip

    def run(self, out: str = "out", workers: int = 1, **sections: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
        manifest = write_table(self.recordings, MANIFEST, self.folder / "manifest.parquet")
        transcripts = write_table(self.texts, TRANSCRIPTS, self.folder / "transcripts.parquet")
        where = self.folder / out
        figures = screen(self.params(workers, **sections), manifest, transcripts, where, self.folder / "work", False)
        rows = {row["id"]: row for row in read_rows(where / "manifest.parquet", UTTERANCES)}
        rejects = {row["id"]: row for row in read_rows(where / "rejects.parquet", REJECTS)}
        assert figures["kept"] == len(rows) and sum(figures["rejected"].values()) == len(rejects)
        assert set(rows) | set(rejects) == {row["id"] for row in self.recordings} and not set(rows) & set(rejects)
        assert figures["train"] + figures["val"] + figures["test"] == len(rows)
        return rows, rejects, figures

    def params(self, workers: int = 1, **sections: Any) -> Params:
        quality = {"shard_size": 4, "max_reject_rate": 0.9} | sections.pop("quality", {})
        plain = {"ingest": {"source": "folder", "path": "x"}, "executor": {"workers": workers}}
        return parse_params(plain | {"quality": quality} | sections)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def test_good_utterances_are_kept_without_the_silence_around_them(corpus: Corpus) -> None:
    rows, rejects, figures = corpus.run()
    assert len(rows) == 12 and not rejects and figures["speakers"] == 2
    for index, (name, row) in enumerate(sorted(rows.items())):
        word = take(index, 0)
        heard, _ = load(row["path"], start=row["start"], end=row["end"])
        assert len(heard) / RATE == pytest.approx(row["seconds"]) == pytest.approx(row["end"] - row["start"])
        assert len(word) - 0.06 * RATE < len(heard) < len(word) + 0.14 * RATE  # a margin of 50 ms
        assert 0.17 <= row["start"] <= 0.27 and (row["recording"], row["origin"], row["group"]) == (name, "given", None)
    whole, _, _ = corpus.run("whole", encode={"trim_db": None})
    assert {row["start"] for row in whole.values()} == {0.0}


def test_pieces_of_a_recording_are_heard_where_they_are(corpus: Corpus) -> None:
    long = np.concatenate([np.pad(take(word, 5), 3000) for word in range(20, 24)])
    ends = np.cumsum([len(take(word, 5)) + 6000 for word in range(20, 24)]) / RATE
    corpus.add("long", long)
    corpus.texts[-1:] = [
        {"id": f"long-{i}", "recording": "long", "start": float(end - (end if i == 0 else end - ends[i - 1])),
         "end": float(end), "speaker": "s9", "language": "en-us", "language_probability": 0.7, "text": f"piece {i}",
         "origin": "recognised"}
        for i, end in enumerate(ends)
    ]  # fmt: skip
    manifest = write_table(corpus.recordings, MANIFEST, corpus.folder / "manifest.parquet")
    transcripts = write_table(corpus.texts, TRANSCRIPTS, corpus.folder / "transcripts.parquet")
    where = corpus.folder / "out"
    params = corpus.params(split={"by": "recording", "test_fraction": 0.5})
    screen(params, manifest, transcripts, where, corpus.folder / "work", False)
    rows = [row for row in read_rows(where / "manifest.parquet", UTTERANCES) if row["recording"] == "long"]
    assert [row["id"] for row in rows] == [f"long-{i}" for i in range(4)]
    assert len({row["split"] for row in rows}) == 1 and {row["speaker"] for row in rows} == {"s9"}
    for i, (row, word) in enumerate(zip(rows, range(20, 24), strict=True)):
        assert (0.0 if i == 0 else ends[i - 1]) < row["start"] < row["end"] < ends[i]
        assert row["seconds"] == pytest.approx(len(take(word, 5)) / RATE, abs=0.14)
    figures = {row["id"]: row for row in read_rows(where / "measures.parquet", MEASURES)}
    assert figures["long-0"]["language_probability"] == pytest.approx(0.7)


def test_every_drop_has_rule_value_and_threshold_and_its_measures(corpus: Corpus) -> None:
    wav = take(0, 0)
    corpus.add("again", np.pad(wav, (4000, 6000)))
    corpus.add("mp3", coded(np.pad(wav, 500), "MP3")[0])
    corpus.add("clipped", np.clip(6 * take(30, 0), -0.4, 0.4))
    corpus.add("silent", np.zeros(RATE, np.float32))
    corpus.add("gone", wav)
    (corpus.folder / "gone.wav").unlink()
    rows, rejects, figures = corpus.run(quality={"near_duplicates": 0.8})
    other, kept = ("mp3", "again") if "mp3" in rejects else ("again", "mp3")  # the narrower band goes
    assert {name: row["rule"] for name, row in rejects.items()} == {
        "u00": "duplicate", other: "near_duplicate", "clipped": "flat_tops", "silent": "silent", "gone": "missing",
    }  # fmt: skip
    assert rejects["u00"]["value"] == "the samples of again"
    assert rejects["clipped"]["threshold"] == "0.0200 of the samples"
    assert all(row["value"] and row["stage"] == "quality" for row in rejects.values())
    measured = {row["id"]: row for row in read_rows(corpus.folder / "out/measures.parquet", MEASURES)}
    assert set(measured) == set(rows) | set(rejects)
    assert measured[other]["duplicate_of"] == kept and measured[other]["duplicate_bits"] > 0.8
    assert measured["clipped"]["flat_tops"] > 0.02 and measured["u01"]["characters_per_second"] > 0
    assert measured["silent"]["lufs"] is None and measured["gone"]["bandwidth_hz"] is None
    lines = (corpus.folder / "out/waterfall.csv").read_text().splitlines()
    assert lines[0] == "rule,rejected,minutes,left,minutes_left" and lines[1].startswith("all,0,0.0,17,")
    assert [line.split(",")[0] for line in lines[2:]] == [
        "missing",
        "silent",
        "flat_tops",
        "duplicate",
        "near_duplicate",
    ]
    assert lines[-1].split(",")[3] == str(figures["kept"])
    assert (corpus.folder / "out/waterfall.png").read_bytes()[:4] == b"\x89PNG"
    both, _, _ = corpus.run(
        "both", quality={"exact_duplicates": False, "near_duplicates": None}, split={"by": "utterance"}
    )
    assert len({both[name]["split"] for name in ("u00", "again")}) == 1 and "clipped" not in both


def test_another_threshold_split_or_text_hears_nothing_again(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.run()
    monkeypatch.setattr(module.audio, "load", lambda *_, **__: pytest.fail("heard again"))
    _, rejects, _ = corpus.run("other", quality={"min_seconds": 0.45, "near_duplicates": None}, split={"seed": 3})
    assert rejects and {row["rule"] for row in rejects.values()} == {"too_short"}
    corpus.texts[0]["text"] = "another text"
    corpus.run("text")
    with pytest.raises(pytest.fail.Exception):
        corpus.run("cut", encode={"trim_db": 30.0})


def test_a_recording_that_comes_back_is_heard_and_one_that_does_not_is_not_looked_for(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.run("expected")
    expected = contents(corpus.folder / "expected")
    shutil.rmtree(corpus.folder / "work")
    away = (corpus.folder / "u05.wav").rename(corpus.folder / "away")
    _, rejects, _ = corpus.run("without")
    assert rejects["u05"]["rule"] == "missing"
    heard: list[str] = []
    plain = module._heard
    monkeypatch.setattr(module, "_heard", lambda row, *rest: heard.append(row["id"]) or plain(row, *rest))
    assert corpus.run("still")[1] == rejects and heard == []
    away.rename(corpus.folder / "u05.wav")
    corpus.run("again")
    assert contents(corpus.folder / "again") == expected and heard == ["u04", "u05", "u06", "u07"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(corpus: Corpus, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.run("expected")
    expected = contents(corpus.folder / "expected")
    (work,) = (corpus.folder / "work").iterdir()
    (work / "measures-00000.parquet").unlink()
    (work / "measures-00002.parquet").unlink()
    (work / ".tmp-1-measures-00002.parquet").write_bytes(b"half")
    heard: list[str] = []
    plain = module._heard
    if workers == 1:
        monkeypatch.setattr(module, "_heard", lambda row, *rest: heard.append(row["id"]) or plain(row, *rest))
    corpus.run("again", workers)
    assert contents(corpus.folder / "again") == expected
    assert heard == ([] if workers > 1 else [f"u{i:02d}" for i in (0, 1, 2, 3, 8, 9, 10, 11)])


def _deadly(row: dict[str, Any], *rest: Any, heard: Callable = module._heard) -> dict[str, Any]:
    return os._exit(9) if row["id"] == "u05" else heard(row, *rest)


def test_an_utterance_that_cannot_be_measured_is_a_reject(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = module._heard

    def failing(row: dict[str, Any], *rest: Any) -> dict[str, Any]:
        if row["id"] == "u05":
            raise IndexError("node Conv_3: invalid dimensions")
        return plain(row, *rest)

    monkeypatch.setattr(module, "_heard", failing)
    rows, rejects, _ = corpus.run()
    assert len(rows) == 11
    assert rejects["u05"]["rule"] == "poisoned"
    assert rejects["u05"]["value"] == "IndexError: node Conv_3: invalid dimensions"


def _write_deadly(*arguments: Any) -> None:
    """A shard's work, in a worker, with an utterance that ends the process."""
    module._heard = _deadly
    module._write_shard(*arguments)


@pytest.mark.slow
def test_an_utterance_that_kills_its_worker_is_a_reject_and_the_others_are_kept(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_write_shard", _write_deadly)
    rows, rejects, figures = corpus.run("poisoned", workers=2)
    monkeypatch.undo()
    assert {name: (row["rule"], row["value"]) for name, row in rejects.items()} == {
        "u05": ("poisoned", "its worker died: exit code 9")
    }
    assert figures["rejected"] == {"poisoned": 1}
    shutil.rmtree(corpus.folder / "work")
    plain, _, _ = corpus.run("plain")
    assert rows == {name: row for name, row in plain.items() if name != "u05"}


def test_too_many_rejects_fail_naming_the_rule_and_leave_the_evidence(corpus: Corpus) -> None:
    said = r"max_reject_rate 0.01.*\n  too_short \d+, for example u\d+: 0\.\d+ s"
    with pytest.raises(RejectRateError, match=said):
        corpus.run(quality={"min_seconds": 0.45, "max_reject_rate": 0.01})
    assert (corpus.folder / "out/waterfall.png").exists() and not (corpus.folder / "out/manifest.parquet").exists()


def test_speakers_kept_for_testing(corpus: Corpus, tmp_path: Path) -> None:
    rows, _, _ = corpus.run(split={"test_speakers": ["s1"]})
    assert {row["split"] for row in rows.values() if row["speaker"] == "s1"} == {"test"}
    with pytest.raises(ConfigError, match="zoe.*it has s0, s1"):
        corpus.run(split={"test_speakers": ["zoe"]})
    with pytest.raises(ConfigError, match="no speaker to train on"):
        corpus.run(split={"test_speakers": ["s0", "s1"]})
    spec = tmp_path / "demo.yaml"
    spec.write_text("sentences: 0\nvoices:\n  - {name: s0, voice: en-us}\n  - {name: s1, voice: en-us, test: true}\n")
    rows, _, _ = corpus.run(ingest={"source": "espeak", "path": str(spec)})
    assert {row["split"] for row in rows.values() if row["speaker"] == "s1"} == {"test"}
    assert "train" in {row["split"] for row in rows.values() if row["speaker"] == "s0"}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("by", ["text", "recording", "speaker", "utterance"])
def test_nothing_leaks_whatever_the_table(by: str, seed: int) -> None:
    """No text, recording or speaker, no linked take and no copy at another speed in two splits."""
    rng = random.Random(f"{by}{seed}")
    rows = [
        Candidate(
            f"u{i}", f"s{rng.randrange(12)}", rng.choice([None, f"text {rng.randrange(80)}"]), f"r{rng.randrange(70)}"
        )
        for i in range(rng.randrange(1, 300))
    ]
    links = [(rng.choice(rows).id, rng.choice(rows).id) for _ in range(rng.randrange(6))]
    config = SplitConfig(
        by=by, seed=seed, test_fraction=rng.uniform(0, 0.4), val_fraction=rng.uniform(0, 0.4),
        test_speakers=tuple(f"s{i}" for i in range(rng.randrange(3))),
    )  # fmt: skip
    splits = assign(rows, config, links=links)
    assert set(splits) == {row.id for row in rows}
    assert all(splits[one] == splits[other] for one, other in links)
    assert {splits[row.id] for row in rows if row.speaker in config.test_speakers} <= {"test"}
    together: dict[str, set[str]] = {}
    for row in rows:
        held = by == "text" and row.speaker in config.test_speakers  # may say what training says
        if by != "utterance" and getattr(row, by) is not None and not held:
            together.setdefault(getattr(row, by), set()).add(splits[row.id])
    assert all(len(found) == 1 for found in together.values())
    mixed = rows[:]
    rng.shuffle(mixed)
    assert assign(mixed, config, links=[link[::-1] for link in links[::-1]]) == splits
    for row in rows[:5]:
        source = {"id": row.id, "speaker": row.speaker, "split": splits[row.id]}
        made = [copy for _, copy in copies(source, EncodeConfig(speeds=(0.9, 1.1)))]
        assert {copy["split"] for copy in made} == {splits[row.id]} and {copy["source"] for copy in made} == {row.id}


def test_a_split_depends_on_its_own_row_only() -> None:
    rows = [Candidate(f"u{i}", f"s{i % 7}", f"text {i % 90}", f"r{i // 5}") for i in range(600)]
    for by in ("text", "recording", "speaker", "utterance"):
        config = SplitConfig(by=by, test_fraction=0.3, val_fraction=0.2)
        whole = assign(rows, config)
        assert {"train", "val", "test"} == set(whole.values())
        part = assign(rows[100:500], config)
        assert part == {name: whole[name] for name in part}
