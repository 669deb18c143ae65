"""No item may hold anything that training saw, and the same seed must choose the same items."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.corpora import RATE, row, tone, write_recordings
from vall_e.config import Params, parse_params
from vall_e.corpus.splits import held_out
from vall_e.evaluation.items import cut_at_pause, join_clips, load_item
from vall_e.evaluation.testset import TestSetError, plan_items
from vall_e.preparation import EncodeConfig

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def utterances() -> list[dict]:
    """Speakers a and b in all splits, c only in test, with training texts too; one val row repeats a test text."""
    rows = []
    for speaker in "abc":
        for i in range(20):
            split = "test" if i < 5 else "val" if i < 7 else "train"
            if speaker != "c" or split == "test":
                rows.append(
                    row(
                        f"{speaker}{i:02d}",
                        speaker,
                        f"Sentence number {i % 6}." if i < 7 else f"Training {i}.",
                        split,
                        1.0 + 0.2 * i,
                    )
                )
    return [*rows, *(row(f"c9{i}", "c", f"Training {i}.", "test", 2.0) for i in range(8, 12))]


def digits() -> list[dict]:
    return [
        row(f"{digit}_{speaker}_{take}", speaker, word, "test" if take < 4 else "val" if take < 5 else "train", 0.4)
        for speaker in "abc"
        for digit, word in enumerate(WORDS)
        for take in range(12)
    ]


def params(**evaluate: object) -> Params:
    return parse_params({"evaluate": {"utterances": 12, "prompt_seconds": [1.5, 3.0], **evaluate}})


def joined_params(**evaluate: object) -> Params:
    return parse_params(
        {
            "train": {"join": {"min_clips": 2, "max_clips": 4}},
            "evaluate": {"utterances": 30, "prompt_seconds": [1.5, 3.0], **evaluate},
        }
    )


def plan(config: Params, rows: list[dict]) -> list:
    return plan_items(config, rows, {r["id"]: r["text"] for r in rows})[0]


def test_utterances_come_from_test_prompts_are_held_out_and_say_something_else() -> None:
    rows = utterances()
    by_id = {r["id"]: r for r in rows}
    plans = plan(params(), rows)
    assert len(plans) == 12 and len({p.id for p in plans}) == 12
    for p in plans:
        assert p.recording == (p.id,) and by_id[p.id]["split"] == "test"
        assert p.seen_speaker == (p.speaker != "c")
        for name in p.prompt:
            assert by_id[name]["split"] in ("test", "val")
            assert by_id[name]["speaker"] == p.speaker
            assert by_id[name]["text"] != by_id[p.id]["text"]
        assert by_id[p.id]["text"] not in {r["text"] for r in rows if r["split"] == "train"}
    assert set(Counter(p.speaker for p in plans).values()) == {4}
    texts = {r["id"]: r["text"] for r in rows}
    assert plan_items(params(utterances=99), rows, texts)[1] == {"text_in_training": 4}
    by_speaker = params().model_copy(update={"split": params().split.model_copy(update={"by": "speaker"})})
    assert plan_items(by_speaker, rows, texts)[1] == {}


def test_joined_strings_are_held_out_and_share_no_clip_with_training_or_their_prompt() -> None:
    rows = digits()
    config = joined_params()
    by_id = {r["id"]: r for r in rows}
    plans = plan(config, rows)
    assert len(plans) == 30
    assert len({(p.speaker, p.text) for p in plans}) == 30
    assert {len(p.recording) for p in plans} == {2, 3, 4}
    assert set(Counter(p.speaker for p in plans).values()) == {10}
    for p in plans:
        assert held_out(p.text, config.split.seed, config.split.test_fraction)
        assert [by_id[i]["text"] for i in p.recording] == p.text.split()
        assert " ".join(by_id[i]["text"] for i in p.prompt) == p.prompt_text
        assert all(by_id[i]["split"] == "test" and by_id[i]["speaker"] == p.speaker for i in (*p.recording, *p.prompt))
        assert not set(p.recording) & set(p.prompt)
        assert len(set(p.recording)) == len(p.recording)
        assert 1.5 <= sum(by_id[i]["seconds"] for i in p.prompt) <= 3.0


@pytest.mark.parametrize(
    ("config", "other", "rows"),
    [
        (params(), params(seed=1), utterances()),
        (joined_params(), joined_params(seed=1), digits()),
    ],
    ids=["utterances", "joined"],
)
def test_the_seed_decides_and_the_order_of_rows_does_not(config: Params, other: Params, rows: list[dict]) -> None:
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    assert plan(config, rows) == plan(config, shuffled)
    assert plan(config, rows) != plan(other, rows)
    assert len({p.seed for p in plan(config, rows)}) == len(plan(config, rows))


def test_rejected_too_long_and_promptless_recordings_are_left_out_and_counted() -> None:
    rows = [
        row("a1", "a", "one", "test", 2.0),
        row("a2", "a", "two", "test", 2.0),
        row("a3", "a", "three", "test", 99.0),
        row("b1", "b", "one", "test", 2.0),
        row("b2", "b", "One!", "val", 2.0),
        row("gone", "a", "four", "test", 2.0),
    ]
    texts = {r["id"]: r["text"] for r in rows if r["id"] != "gone"}
    plans, dropped = plan_items(params(), rows, texts)
    assert sorted(p.id for p in plans) == ["a1", "a2"]
    assert dropped == {"longer_than_max_seconds": 1, "no_prompt": 1}
    assert not any("gone" in p.prompt for p in plans)


def test_nothing_to_test_on_names_the_parameter() -> None:
    only_train = [row("a", "a", "one", "train", 1.0)]
    with pytest.raises(TestSetError, match="split.test_fraction"):
        plan(params(), only_train)
    with pytest.raises(TestSetError, match="split.test_fraction"):
        plan(joined_params(), only_train)
    with pytest.raises(TestSetError, match="no_prompt: 1"):
        plan(params(), [row("a", "a", "one", "test", 1.0)])


def test_few_strings_end_the_search() -> None:
    rows = [row(f"{w}{t}", "a", w, "test", 0.8) for w in ("yes", "no") for t in range(4)]
    config = parse_params(
        {"train": {"join": {"min_clips": 2, "max_clips": 3}}, "split": {"test_fraction": 0.5, "val_fraction": 0.1}}
    )
    plans, dropped = plan_items(config, rows, {r["id"]: r["text"] for r in rows})
    assert 0 < len({p.text for p in plans}) == len(plans) <= 12
    assert dropped["no_new_string"] == 1


def test_audio_is_levelled_joined_and_cut_with_its_text(tmp_path: Path) -> None:
    rows = write_recordings([row("a1", "a", "one", "test", 1.0), row("a2", "a", "two", "test", 6.0)], tmp_path)
    config = params(prompt_seconds=[0.5, 2.0])
    plans = {p.id: p for p in plan(config, rows)}
    table = {r["id"]: r for r in rows}
    cut = load_item(plans["a1"], table, EncodeConfig(), 24_000)
    assert cut.prompt_text is None and 1.2 * 24_000 < cut.prompt.size <= 2.0 * 24_000
    assert abs(cut.recording.size - 24_000) < 2400 and cut.recording.dtype == np.float32
    whole = load_item(plans["a2"], table, EncodeConfig(), 24_000)
    assert whole.prompt_text == "one"
    quiet = load_item(plans["a2"], table, EncodeConfig(loudness_lufs=-40.0), 24_000)
    assert np.abs(quiet.recording).max() < 0.5 * np.abs(whole.recording).max()
    np.testing.assert_array_equal(whole.recording, load_item(plans["a2"], table, EncodeConfig(), 24_000).recording)


def test_joining_keeps_every_clip_and_fills_gaps_with_faint_noise() -> None:
    clips = [tone(300, 0.2), tone(400, 0.3)]
    out = join_clips(clips, RATE, (0.05, 0.1), np.random.default_rng(0))
    gap = out[clips[0].size : -clips[1].size]
    np.testing.assert_array_equal(out[: clips[0].size], clips[0])
    np.testing.assert_array_equal(out[-clips[1].size :], clips[1])
    assert 0.05 * RATE - 1 <= gap.size <= 0.1 * RATE
    assert 0 < np.abs(gap).max() < 0.003


def test_cutting_prefers_a_pause() -> None:
    wav = np.concatenate([tone(300, 0.8), np.zeros(int(0.1 * RATE), np.float32), tone(300, 1.0)])
    out = cut_at_pause(wav, RATE, RATE)
    assert 0.8 * RATE <= out.size <= 0.91 * RATE
    assert out[-1] == 0
