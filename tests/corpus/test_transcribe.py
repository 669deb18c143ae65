"""Recordings of any length become utterances with a text; a killed run goes on; phones and tokenizer follow."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.corpus.transcription.bursts import RATE, BurstEar, bursts
from tests.corpus.transcription.stand_ins import Ear, Shifted, Turns, corpus, recording, run
from vall_e.corpus.quality import RejectRateError
from vall_e.corpus.schema import MANIFEST, write_table
from vall_e.corpus.transcription import listening
from vall_e.corpus.transcription.checking import character_error_rate
from vall_e.corpus.work import digest_of
from vall_e.evaluation.hearing import Hearing
from vall_e.preparation import ExecutorConfig, TranscribeConfig


def test_given_texts_are_checked_and_others_recognised(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["Seven, three.", "one two", None, None, "...", "739", "it's 5"])
    said = ["seven three", "good morning", "Hello there", " ...", "x", "seven three nine", ""]
    ear = Ear(dict(enumerate(said, 3200)))
    kept, rejects, figures = run(tmp_path, manifest, ear, prompt="digits", max_cer=0.3)
    row = kept["u000"]
    assert (row["text"], row["origin"], row["recognised"], row["cer"]) == ("Seven, three.", "given", "seven three", 0.0)
    assert (row["recording"], row["start"], row["end"], row["speaker"]) == ("u000", 0.0, pytest.approx(0.2), "s")
    assert row["avg_logprob"] == pytest.approx(-0.1 * 2 / 3) and row["no_speech"] == pytest.approx(0.01)
    assert row["words"] is None
    assert (kept["u002"]["text"], kept["u002"]["origin"], kept["u002"]["cer"]) == ("Hello there", "recognised", None)
    assert [word["word"] for word in kept["u002"]["words"]] == ["Hello", "there"]
    assert {name: row["rule"] for name, row in rejects.items()} == {
        "u001": "cer",
        "u003": "no_speech",
        "u004": "no_words",
        "u005": "cer",
        "u006": "cer",
    }
    assert "good morning" in rejects["u001"]["value"] and rejects["u001"]["threshold"] == "0.3"
    assert all(row["value"] is not None and row["threshold"] for row in rejects.values())
    assert (figures["given"], figures["recognised"], figures["verified"], figures["cut"]) == (1, 1, 4, 0)
    assert 0 < figures["mean_cer"] <= 1
    # Recordings without a text are cut into speech first, known short clips are not.
    assert set(ear.calls) == {("digits", False), ("digits", True)}


def test_short_texts_are_checked_and_kept_whatever_was_heard(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["7", "it's 7, isn't it", "one two three", "..."])
    ear = Ear(dict.fromkeys(range(3200, 3204), "zebra"))
    kept, rejects, figures = run(tmp_path, manifest, ear, max_cer=0.5, max_cer_letters=11)
    assert (set(kept), kept["u000"]["text"]) == ({"u000"}, "7") and kept["u000"]["cer"] > 0.5
    assert {name: row["rule"] for name, row in rejects.items()} == {"u001": "cer", "u002": "cer", "u003": "no_words"}
    assert figures["verified"] == 3


def test_a_text_in_another_language_than_the_recogniser_hears_is_said_to_be_so(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["guten Morgen", "guten Morgen"], language="de")
    _, rejects, _ = run(tmp_path, manifest, Ear({3200: "good morn, then", 3201: "Guten Morgen"}), max_cer=0.1)
    assert rejects["u000"]["value"].endswith("given 'guten Morgen' in de (heard as en)") and len(rejects) == 1


def test_cer_reads_digits_as_the_speaker_did() -> None:
    assert character_error_rate("seven three nine", "7 3 9", "en-us") == 0
    assert character_error_rate("seven three nine", "739", "en-us") == 0
    assert character_error_rate("fourteen fifty five", "1455.", "en-us") == 0
    assert character_error_rate("one", "", "en-us") == 1
    assert character_error_rate("abcd", "abxd", "en-us") == 0.25


def test_verify_fraction_is_a_choice_by_id(tmp_path: Path) -> None:
    manifest, ids = corpus(tmp_path, ["one"] * 60)
    ears = [Ear(dict.fromkeys(range(3200, 3260), "one")) for _ in range(3)]
    chosen = []
    for ear, share in zip(ears, (0.0, 0.3, 0.6), strict=True):
        kept, _, figures = run(tmp_path, manifest, ear, verify_fraction=share)
        assert set(kept) == set(ids) and figures["verified"] == len(ear.heard)
        chosen.append({name for name, row in kept.items() if row["cer"] is not None})
    assert not chosen[0] and 5 < len(chosen[1]) < len(chosen[2]) < 55 and chosen[1] < chosen[2]


def test_inventions_are_rejects_only_where_the_text_is_the_recognisers(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["no " * 9, None, None, None])
    said = ["no " * 9, "no " * 9, "Thanks for watching!", "good words"]
    kept, rejects, _ = run(tmp_path, manifest, Ear(dict(enumerate(said, 3200))))
    assert set(kept) == {"u000", "u003"}
    assert {name: row["rule"] for name, row in rejects.items()} == {"u001": "loop", "u002": "phrase"}


@pytest.mark.parametrize("given", [False, True])
def test_a_long_recording_is_cut_and_nothing_of_it_is_lost(tmp_path: Path, monkeypatch, given: bool) -> None:
    monkeypatch.setattr(listening, "WINDOW_SECONDS", 20.0)
    wav, truth = bursts(150, 1)
    said = " ".join(word for word, _, _ in truth)
    row = recording("long", tmp_path / "long.wav", wav, said.upper() if given else None)
    manifest = write_table([row], MANIFEST, tmp_path / "manifest.parquet")
    # Every ninth word is heard as another one, or not at all.
    wrong = {k: "zebra" if k % 2 else "" for k in range(0, 150, 9)} if given else {}
    ear = BurstEar(truth, wrong)
    kept, rejects, figures = run(tmp_path, manifest, ear, max_seconds=9.0, max_cer=0.9)
    assert len(wav) / RATE > 60 and ear.longest <= 20.0
    assert figures["cut"] == 1 and len(kept) > 5
    assert all(row["recording"] == "long" and 0.5 <= row["end"] - row["start"] <= 9.0 for row in kept.values())
    spans = sorted((row["start"], row["end"]) for row in kept.values())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    inside = 0
    for row in kept.values():
        mine = [word for word, start, end in truth if start < row["end"] and end > row["start"]]
        inside += len(mine)
        assert row["text"] == " ".join(mine).upper() if given else row["text"] == " ".join(mine)
        assert row["origin"] == ("given" if given else "recognised")
    # What is missing is in the rejects, which say why.
    assert inside == 150 or {row["rule"] for row in rejects.values()} <= {"unsure", "no_pause", "too_short"}
    assert inside >= 130 if given else inside == 150
    assert list(kept) == sorted(kept) and all(name.startswith("long-0") for name in [*kept, *rejects])


def test_a_text_that_is_of_another_recording_is_unsure(tmp_path: Path) -> None:
    wav, truth = bursts(40, 2)
    row = recording("long", tmp_path / "long.wav", wav, "nothing of this was ever said here " * 6)
    good = recording("short", tmp_path / "short.wav", np.full(3200, 0.1), "one")
    manifest = write_table([row, good], MANIFEST, tmp_path / "manifest.parquet")

    class Both(BurstEar):
        def hear(self, clips, *args, **how):
            return [
                Ear({3200: "one"}).hear([c])[0] if len(c[0]) == 3200 else super(Both, self).hear([c])[0] for c in clips
            ]

    kept, rejects, _ = run(tmp_path, manifest, Both(truth), max_seconds=9.0, max_cer=5.0)
    assert set(kept) == {"short"} and {row["rule"] for row in rejects.values()} == {"unsure"}


def test_an_id_is_never_that_of_another_recording(tmp_path: Path) -> None:
    wav, truth = bursts(40, 2)
    rows = [
        recording("a", tmp_path / "a.wav", wav, None),
        recording("a-0001", tmp_path / "b.wav", np.full(3200, 0.1), "one"),
    ]
    manifest = write_table(rows, MANIFEST, tmp_path / "manifest.parquet")
    kept, _, _ = run(tmp_path, manifest, BurstEar(truth), max_seconds=9.0, verify_fraction=0.0)
    assert kept["a-0001"]["recording"] == "a-0001" and kept["a-0001_"]["recording"] == "a"


def test_utterances_are_cut_where_the_speaker_changes(tmp_path: Path) -> None:
    wav, truth = bursts(12, 4)
    at = (truth[5][2] + truth[6][1]) / 2
    manifest = write_table([recording("r", tmp_path / "r.wav", wav, None)], MANIFEST, tmp_path / "manifest.parquet")
    models = {"diariser": lambda config, device: Turns(at)}
    kept, _, _ = run(tmp_path, manifest, BurstEar(truth), models=models, diarise={"model": "x"})
    said = [word for word, _, _ in truth]
    assert [(row["speaker"], row["text"]) for row in kept.values()] == [
        ("s-S0", " ".join(said[:6])),
        ("s-S1", " ".join(said[6:])),
    ]
    whole = {"diariser": lambda config, device: Turns(1000.0)}
    kept, _, _ = run(tmp_path / "again", manifest, BurstEar(truth), models=whole, diarise={"model": "x"})
    assert [(row["id"], row["speaker"]) for row in kept.values()] == [("r", "s-S0")]


def test_words_are_aligned_where_a_model_is_named_for_their_language(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, [None, None])
    said = dict(enumerate(["one two", "three four"], 3200))
    models = {"aligner": lambda model, language, device: Shifted()}
    kept, _, figures = run(tmp_path, manifest, Ear(said), models=models, align={"en": "./x", "de": "./y"})
    assert figures["word_times"] == {"en": "x"}
    metadata = pq.read_schema(tmp_path / "out/transcripts.parquet").metadata
    assert json.loads(metadata[b"word_times"]) == {"en": "x"}
    assert all(word["end"] <= 0.1001 and word["score"] == 0.5 for word in kept["u001"]["words"])
    kept, _, figures = run(tmp_path, manifest, Ear(said), models=models, align={"de": "./y"})
    assert figures["word_times"] == {"en": "attention"} and kept["u001"]["words"][1]["end"] > 0.15


@pytest.mark.parametrize("configured", ["en", "auto"])
def test_a_language_that_the_layout_names_is_the_recognisers(tmp_path: Path, monkeypatch, configured: str) -> None:
    """In a batch, one by one where a batch fails, and by windows; what is detected in others stays theirs."""
    monkeypatch.setattr(listening, "WINDOW_SECONDS", 20.0)
    said: dict[int, set[str | None]] = {}

    class Polyglot(Ear):
        def hear(self, clips, prompt=None, vad=False, words=False, languages=None) -> list[Hearing]:
            if len(clips) > 1:
                raise RuntimeError("one by one")
            ((wav, _),) = clips
            said.setdefault(len(wav) % 100, set()).update(languages)
            heard = Ear({len(wav): "wort"}, language=languages[0] or "nl").hear(clips)
            return heard

    names = {1: "de", 2: "cmn", 3: "pt-br", 4: None, 5: "de"}
    rows = []
    for tail, language in names.items():
        wav = np.full((25 * RATE if tail == 5 else 3200) + tail, 0.1)
        row = recording(f"u{tail}", tmp_path / f"u{tail}.wav", wav, None, language or "en-us")
        rows.append(row | {"language_given": language is not None})
    manifest = write_table(rows, MANIFEST, tmp_path / "manifest.parquet")
    kept, _, _ = run(tmp_path, manifest, Polyglot({}), recogniser={"language": configured})
    assert {tail: said[tail] for tail in (1, 2, 3, 4)} == {1: {"de"}, 2: {"zh"}, 3: {"pt"}, 4: {None}}
    assert {name: row["language"] for name, row in kept.items()} == {
        "u1": "de", "u2": "cmn", "u3": "pt-br", "u4": "nl" if configured == "auto" else "en-us", "u5": "de",
    }  # fmt: skip


def test_a_detected_language_is_espeaks(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, [None], language="en-gb")
    settings = {"recogniser": {"language": "auto"}}
    for code, found in (("de", "de"), ("en", "en-gb"), ("zh", "cmn")):
        kept, _, _ = run(tmp_path, manifest, Ear({3200: "word"}, language=code), **settings)
        assert kept["u000"]["language"] == found and kept["u000"]["language_probability"] == pytest.approx(0.8)
    with pytest.raises(RejectRateError, match="language"):
        run(tmp_path, manifest, Ear({3200: "word"}, language="bo"), **settings)


@pytest.mark.parametrize("patience", [1, 5, 10, 14, 19])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, patience: int) -> None:
    manifest, ids = corpus(tmp_path, ["one", None] * 10)
    words = dict.fromkeys(range(3200, 3220), "one")
    settings = {"shard_size": 4, "recogniser": {"batch_size": 1}}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, manifest, Ear(words, patience), **settings)
    done = list((tmp_path / "work").glob("transcribe-*/shard-*.jsonl"))
    assert sum(len(path.read_text().splitlines()) for path in done) == 4 * len(done) <= patience
    (tmp_path / "work" / done[0].parent.name / ".tmp-1-shard-00004.jsonl").write_text("{") if done else None
    ear = Ear(words)
    kept, _, _ = run(tmp_path, manifest, ear, **settings)
    assert len(ear.heard) == 20 - 4 * len(done) and set(kept) == set(ids)
    assert not (tmp_path / "work").exists()
    run(tmp_path / "whole", manifest, Ear(words), **settings)
    assert digest_of(tmp_path / "out") == digest_of(tmp_path / "whole/out")


def test_two_workers_write_the_same_bytes(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["one", None] * 6)
    ear = Ear({3200 + i: f"word number {'abcdefghijkl'[i]}" for i in range(12)})
    settings = {"shard_size": 4, "max_cer": 9.0}
    for workers in (1, 2):
        run(tmp_path / str(workers), manifest, ear, ExecutorConfig(workers=workers), **settings)
    assert digest_of(tmp_path / "1/out") == digest_of(tmp_path / "2/out")


def test_a_gate_that_changes_makes_nobody_listen_again(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["one two three"] * 2)
    words = {3200: "one two three", 3201: "zebra"}
    with pytest.raises(RejectRateError, match="zebra"):
        run(tmp_path, manifest, Ear(words), max_reject_rate=0.4)
    ear = Ear(words)
    kept, _, _ = run(tmp_path, manifest, ear, max_reject_rate=0.4, max_cer=9.0)
    assert len(kept) == 2 and not ear.heard


def test_a_recording_that_comes_back_is_heard_and_aligned(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, [None] * 4)
    words = dict.fromkeys(range(3200, 3204), "one two")
    settings = {"align": {"en": "aligner"}, "shard_size": 2, "models": {"aligner": lambda *_: Shifted()}}
    run(tmp_path, manifest, Ear(words), **settings)
    whole = digest_of(tmp_path / "out")
    away = (tmp_path / "u002.wav").rename(tmp_path / "away")
    with pytest.raises(RejectRateError, match="unreadable|missing"):
        run(tmp_path, manifest, Ear(words), max_reject_rate=0.1, **settings)
    away.rename(tmp_path / "u002.wav")
    ear = Ear(words)
    run(tmp_path, manifest, ear, max_reject_rate=0.1, **settings)
    assert digest_of(tmp_path / "out") == whole and len(ear.heard) == 2


def test_other_parameters_do_not_use_the_old_work(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["one"] * 8)
    words = dict.fromkeys(range(3200, 3208), "one")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, manifest, Ear(words, 4), recogniser={"batch_size": 1}, shard_size=4)
    ear = Ear(words)
    run(tmp_path, manifest, ear, recogniser={"batch_size": 1}, shard_size=4, prompt="another")
    assert len(ear.heard) == 8


@pytest.mark.parametrize("text", ["one", None])
def test_a_recording_that_is_broken_costs_itself_only(tmp_path: Path, text: str | None) -> None:
    manifest, _ = corpus(tmp_path, [text] * 5)
    (tmp_path / "u001.wav").write_bytes(b"")
    ear = Ear(dict.fromkeys(range(3200, 3205), "one"), poison=3203)
    kept, rejects, _ = run(tmp_path, manifest, ear)
    assert set(kept) == {"u000", "u002", "u004"}
    assert {name: row["rule"] for name, row in rejects.items()} == {"u001": "unreadable", "u003": "recogniser_failed"}
    assert rejects["u003"]["value"] == "the model broke"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_seconds": 20.0}, "twice min_seconds"),
        ({"min_pause": 3.0}, "min_pause"),
        ({"diarise": {"model": "x", "min_speakers": 3, "max_speakers": 2}}, "max_speakers"),
        ({"hallucinations": {"chars_per_second": (3.0, 1.0)}}, "lowest, highest"),
        ({"diarise": {}}, "model"),
    ],
)
def test_impossible_parameters_say_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TranscribeConfig.model_validate(changes)
