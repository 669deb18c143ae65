"""Splits depend on hashes, not on what else is in the corpus."""

from __future__ import annotations

import random

import pytest

from vall_e.corpus.splits import Candidate, assign, held_out
from vall_e.preparation import SplitConfig

CONFIG = SplitConfig(test_fraction=0.1, val_fraction=0.05)
CORPUS = [Candidate(f"u{i}", f"s{i % 5}", f"text {i % 400}", f"r{i % 300}") for i in range(2000)]


def test_order_and_company_do_not_matter() -> None:
    splits = assign(CORPUS, CONFIG)
    shuffled = CORPUS[:1000]
    random.Random(0).shuffle(shuffled)
    assert assign(shuffled, CONFIG) == {c.id: splits[c.id] for c in shuffled}
    assert set(splits) == {c.id for c in CORPUS}


def test_shares_are_about_what_was_asked() -> None:
    rows = [Candidate(f"u{i}", "s", f"text {i}", f"u{i}") for i in range(20_000)]
    got = list(assign(rows, CONFIG).values())
    assert got.count("test") / len(got) == pytest.approx(0.1, abs=0.01)
    assert got.count("val") / len(got) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(("by", "group"), [("text", "text"), ("speaker", "speaker"), ("recording", "recording")])
def test_groups_stay_together(by: str, group: str) -> None:
    config = CONFIG.model_copy(update={"by": by, "test_fraction": 0.3})
    splits = assign(CORPUS, config)
    seen: dict[str, set[str]] = {}
    for candidate in CORPUS:
        seen.setdefault(getattr(candidate, group), set()).add(splits[candidate.id])
    assert all(len(found) == 1 for found in seen.values())
    assert {"train", "test"} <= set(splits.values())


def test_utterances_of_one_text_may_part() -> None:
    config = CONFIG.model_copy(update={"by": "utterance"})
    same = [Candidate(f"u{i}", "s", "seven", f"u{i}") for i in range(500)]
    assert set(assign(same, config).values()) == {"train", "val", "test"}
    assert len(set(assign(same, CONFIG).values())) <= 2


def test_test_speakers_are_never_trained_on() -> None:
    splits = assign(CORPUS, CONFIG.model_copy(update={"test_speakers": ("s1",)}), test_speakers=["s2"])
    assert {splits[c.id] for c in CORPUS if c.speaker in ("s1", "s2")} == {"test"}
    assert "train" in {splits[c.id] for c in CORPUS if c.speaker == "s3"}


def test_a_sentence_is_held_out_by_the_rule_for_joined_strings() -> None:
    splits = assign(CORPUS, CONFIG)
    assert {c.text for c in CORPUS if splits[c.id] == "test"} == {
        c.text for c in CORPUS if held_out(c.text or "", CONFIG.seed, CONFIG.test_fraction)
    }
    assert held_out("one  two ", 0, 0.5) == held_out("one two", 0, 0.5)
    assert not held_out("one two", 0, 0.0) and held_out("one two", 0, 1.0)
    assert {held_out("one two", seed, 0.5) for seed in range(20)} == {True, False}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_small_corpora_get_each_split_they_have_room_for(count: int) -> None:
    for seed in range(10):
        config = CONFIG.model_copy(update={"seed": seed})
        got = set(assign([Candidate(f"u{i}", "s", f"t{i}", f"u{i}") for i in range(count)], config).values())
        assert "train" in got
        assert got == {"train", "val", "test"} or count < 3


def test_single_words_are_for_training_where_longer_texts_are_held_out() -> None:
    config = CONFIG.model_copy(update={"test_fraction": 0.4, "val_fraction": 0.2})
    words = [Candidate(f"w{i}", "s", f"word{i}", f"w{i}") for i in range(40)]
    longer = [Candidate(f"t{i}", "s", f"word{i} and more", f"t{i}") for i in range(40)]
    splits = assign(words + longer, config)
    assert {splits[c.id] for c in words} == {"train"}
    assert {splits[c.id] for c in longer} == {"train", "val", "test"}
    assert set(assign(words, config).values()) == {"train", "val", "test"}  # nothing else to hold out
