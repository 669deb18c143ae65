"""Lists of others: what each column becomes, and what is said of a broken line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.corpora import RATE, row, tone
from tests.evaluation.test_run import Encoder, Recogniser, Voice
from vall_e import audio
from vall_e.config import Params, parse_params
from vall_e.corpus.schema import RESULTS, SCORES, read_rows
from vall_e.corpus.work import digest_of
from vall_e.evaluation.items import load_item
from vall_e.evaluation.lists import digests_of, plan_list, read_list
from vall_e.evaluation.run import evaluate
from vall_e.evaluation.score import score
from vall_e.evaluation.testset import TestSetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pitch in (("prompts/ann", 250), ("prompts/bob", 450), ("wavs/u1", 250)):
        audio.save_wav(tmp_path / f"{name}.wav", tone(pitch, 1.0), RATE)
    for name, pitch in (("61-70968-0002", 250), ("61-70968-0005", 260), ("908-31957-0001", 450)):
        place = tmp_path / Path(*name.split("-")[:2])
        audio.save_wav(place / f"{name}.wav", tone(pitch, 0.8), RATE)
    return tmp_path


def written(folder: Path, *lines: str) -> Path:
    path = folder / "meta.lst"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def config(path: Path, **changes: object) -> Params:
    settings = {"testset": str(path), "bootstrap": 20, "batch_size": 4, **changes}
    return parse_params({"evaluate": settings, "score": {"dnsmos": False, "bootstrap": 20}})


SEED = ("u1|Hello there.|prompts/ann.wav|Yes, yes!|wavs/u1.wav", "u2|Hm|prompts/bob.wav|Yes yes yes")


def test_seed_tts(folder: Path) -> None:
    entries = read_list(written(folder, *SEED, ""))
    assert [(e.id, e.text, e.speaker, e.prompt_text) for e in entries] == [
        ("u1", "Yes, yes!", "ann", "Hello there."),
        ("u2", "Yes yes yes", "bob", "Hm"),
    ]
    assert entries[0].recording == folder / "wavs/u1.wav" and entries[1].recording is None


def test_librispeech_cross_sentence(folder: Path) -> None:
    line = "61-70968-0002\t3.2\tGive not so\t61-70968-0005\t4.1\tThere befell an anxious interview"
    (entry,) = read_list(written(folder, line))
    assert (entry.id, entry.speaker, entry.prompt_text) == ("61-70968-0005", "61", "Give not so")
    assert entry.prompt == folder / "61/70968/61-70968-0002.wav"
    assert entry.recording == folder / "61/70968/61-70968-0005.wav"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("u3|Hello|prompts/ann.wav", "3 columns"),
        ("u3|Hello|prompts/none.wav|text", "none.wav"),
        ("u3|Hello|meta.lst|text", "meta.lst"),
        ("u3|Hello|prompts/ann.wav|  ", "no text to say"),
        ("u3|Hello||text", "no prompt_wav"),
        ("../u3|Hello|prompts/ann.wav|text", "no name for a file"),
        ("u1|Hello|prompts/ann.wav|text", "u1 is line 1, too"),
        ("61-70968-0002\tx\tGive\t61-70968-0005\t4.1\tThere", "'x' is no number"),
        ("61-70968-0002\t1\tGive\t61-70968-0002\t1\tGive", "continuations"),
        ("61-70968-0002\t1\tGive\t61-70968-0009\t1\tGive", "61-70968-0009.flac"),
        ("61/70968\t1\tGive\t61-70968-0005\t1\tGive", "no LibriSpeech utterance"),
        ("a\tb\tc", "3 columns in place of ref_utt"),
    ],
)
def test_a_broken_line_is_named(folder: Path, line: str, said: str) -> None:
    with pytest.raises(TestSetError, match=r"meta\.lst has 1 broken lines: line 3: ") as error:
        read_list(written(folder, *SEED, line))
    assert said in str(error.value)


def test_a_list_that_is_not_there_or_empty_is_named(folder: Path) -> None:
    with pytest.raises(TestSetError, match="cannot be read"):
        read_list(folder / "other.lst")
    with pytest.raises(TestSetError, match="no lines"):
        read_list(written(folder, "", " "))
    with pytest.raises(TestSetError, match=r"has 9 broken lines: .*and 4 more"):
        read_list(written(folder, *["a|b"] * 9))


def test_plans_say_what_training_has_met_and_leave_prompts_whole(folder: Path) -> None:
    rows = [row("t", "ann", "Yes yes", "train", 1.0), row("v", "bob", "Yes yes yes", "val", 1.0)]
    texts = {r["id"]: r["text"] for r in rows}
    settings = config(written(folder, *SEED), prompt_seconds=[0.1, 0.2])
    plans, dropped, files = plan_list(settings, rows, texts)
    by_id = {plan.id: plan for plan in plans}
    assert dropped == {} and (by_id["u1"].seen_speaker, by_id["u1"].seen_text) == (True, True)
    assert (by_id["u2"].seen_speaker, by_id["u2"].seen_text) == (False, False)  # validation is no training
    item = load_item(by_id["u2"], files, settings.encode, RATE)
    assert item.recording is None and item.prompt.size == RATE and item.prompt_text == "hm"
    one, left_out, _ = plan_list(config(written(folder, *SEED), utterances=1), rows, texts)
    assert len(one) == 1 and left_out == {"not_asked_for": 1}
    with pytest.raises(TestSetError, match="nothing of '---'"):
        plan_list(config(written(folder, "u|a|prompts/ann.wav|---")), rows, texts)


def test_a_list_goes_through_evaluate_and_score(folder: Path, tmp_path: Path) -> None:
    settings = config(written(folder, *SEED), normaliser="whisper")
    metrics = evaluate(settings, Voice(), [], {}, tmp_path / "e", recogniser=Recogniser())
    results = {(r["id"], r["kind"]): r for r in read_rows(tmp_path / "e/results.parquet", RESULTS)}
    assert set(results) == {("u1", "model"), ("u1", "resynthesis"), ("u1", "recording"), ("u2", "model")}
    assert results["u2", "model"]["heard"] == "Yes, Yes, Yes, " and results["u2", "model"]["word_errors"] == 0
    assert results["u1", "model"]["written"] == "Yes, yes!"
    assert metrics["normaliser"] == "whisper" and metrics["testset"].endswith("meta.lst")
    assert metrics["wer_over_codec"]["value"] < 0  # of the item that has a recording: ten are heard in a second
    found = score(settings, tmp_path / "e", [], RATE, tmp_path / "s", encoder=Encoder())
    assert found["speaker_top1"]["recording"]["value"] == 1.0  # centroids are the prompts'
    scores = {(r["id"], r["kind"]): r for r in read_rows(tmp_path / "s/scores.parquet", SCORES)}
    assert scores["u2", "model"]["mcd"] is None and scores["u1", "model"]["mcd"] > 0


def test_unfinished_work_depends_on_the_lists_recordings(folder: Path) -> None:
    path = written(folder, *SEED)
    before = digests_of(path, digest_of)
    audio.save_wav(folder / "prompts/bob.wav", np.zeros(RATE, np.float32), RATE)
    assert digests_of(path, digest_of) != before and len(before) == 4
