"""The layout of sequences."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import CODES, LEVELS, sample
from vall_e.models.packing import IGNORE, PROMPT, RESPONSE, RESPONSE_START, TEXT, Layout, Sample, pack


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_everything_packed_can_be_read_back(rng: np.random.Generator) -> None:
    samples = [sample(rng, 3, 5, 7), sample(rng, 1, 0, 4), sample(rng, 6, 2, 1)]
    packed = pack(samples, Layout(LEVELS, CODES))
    for i, s in enumerate(samples):
        text, segment, code = packed.text[i].numpy(), packed.segment[i].numpy(), packed.code[i].numpy()
        assert packed.lengths[i] == s.length == (segment > 0).sum()
        assert text[segment == TEXT][1:-1].tolist() == s.text.tolist()
        np.testing.assert_array_equal(code[:, segment == PROMPT] - 1, s.prompt)
        np.testing.assert_array_equal(code[:, segment == RESPONSE] - CODES - 1, s.response)
        assert segment[packed.response[i]] == RESPONSE_START


def test_causal_targets_are_the_next_frame_and_then_stop(rng: np.random.Generator) -> None:
    s = sample(rng, response=6)
    packed = pack([s], Layout(LEVELS, CODES))
    start = int(packed.response[0])
    target = packed.target[0].numpy()
    np.testing.assert_array_equal(target[:, start : start + 6], s.response)
    assert target[0, start + 6] == CODES
    assert (target[1:, start + 6] == IGNORE).all()
    assert (target[:, :start] == IGNORE).all()


def test_parallel_rows_show_lower_levels_only_and_predict_theirs_in_place(rng: np.random.Generator) -> None:
    s = sample(rng, response=6, level=1)
    packed = pack([s], Layout(LEVELS, CODES, depth=False))
    at = slice(int(packed.response[0]) + 1, s.length)
    code, target = packed.code[0].numpy(), packed.target[0].numpy()
    np.testing.assert_array_equal(code[0, at] - CODES - 1, s.response[0])
    assert (code[1:, at] == 0).all()
    np.testing.assert_array_equal(target[1, at], s.response[1])
    assert (target[[0, 2]] == IGNORE).all()


def test_corruption_changes_what_is_seen_not_what_is_wanted(rng: np.random.Generator) -> None:
    s = sample(rng, response=4)
    seen = s.response.copy()
    seen[:, 2] = CODES
    clean, corrupted = (pack([x], Layout(LEVELS, CODES)) for x in (s, Sample(s.text, s.prompt, s.response, 0, seen)))
    assert (clean.target == corrupted.target).all()
    at = int(clean.response[0]) + 3
    assert (corrupted.code[0, :, at] == 2 * CODES + 1).all()
    assert (clean.code != corrupted.code).any(dim=1).nonzero()[:, 1].tolist() == [at]


def test_frames_know_the_slots_of_their_phones_and_stop_that_of_eos(rng: np.random.Generator) -> None:
    s = Sample(
        np.array([4, 5]), *(np.zeros((LEVELS, n), dtype=np.int64) for n in (2, 3)), spoken=np.array([[0, 0, 1]] * 2)
    )
    packed = pack([s, sample(rng, 9, 3, 8)], Layout(LEVELS, CODES))
    start = int(packed.response[0])
    assert packed.spoken[0, 0, start : start + 4].tolist() == [1, 1, 2, 3]
    assert packed.text[0, [1, 2]].tolist() == [4, 5]
    assert (packed.spoken[0, :, :start] == IGNORE).all() and (packed.spoken[0, :, start + 4 :] == IGNORE).all()
    silent = pack([Sample(s.text, s.prompt, s.response)], Layout(LEVELS, CODES))
    assert (silent.spoken == IGNORE).all()


def test_positions_count_anew_in_each_segment_or_go_on(rng: np.random.Generator) -> None:
    s = sample(rng, 3, 2, 4)
    restarted, running = (pack([s], Layout(LEVELS, CODES, restart=r)).position[0].tolist() for r in (True, False))
    assert restarted == [*range(5), *range(3), *range(5)]
    assert running == list(range(s.length))
