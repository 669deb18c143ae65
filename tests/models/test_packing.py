"""The layout of sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import CODES, LEVELS, PHONES, of_task, sample
from vall_e.models.packing import CHARS, DIGITS, IGNORE, Layout, Place, Sample, pack
from vall_e.tasks import NAMES, TASKS


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_everything_packed_can_be_read_back(rng: np.random.Generator) -> None:
    samples = [sample(rng, 3, 5, 7), sample(rng, 1, 0, 4), sample(rng, 6, 2, 1)]
    layout = Layout(LEVELS, CODES)
    packed = pack(samples, layout)
    for i, s in enumerate(samples):
        text, segment, code = packed.symbol[i].numpy(), packed.segment[i].numpy(), packed.code[i].numpy()
        assert packed.lengths[i] == layout.length(s) == (segment > 0).sum()
        assert text[segment == Place.TEXT][1:-1].tolist() == s.text.tolist()
        np.testing.assert_array_equal(code[:, segment == Place.PROMPT] - 1, s.prompt)
        np.testing.assert_array_equal(code[:, segment == Place.RESPONSE] - CODES - 1, s.response)
        assert segment[packed.response[i]] == Place.START


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
    packed = pack([s], Layout(LEVELS, CODES, frames=False))
    at = slice(int(packed.response[0]) + 1, int(packed.lengths[0]))
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
    assert packed.spoken[0, 0, start : start + 4].tolist() == [2, 2, 3, 4]
    assert packed.symbol[0, [2, 3]].tolist() == [4, 5]
    assert (packed.spoken[0, :, :start] == IGNORE).all() and (packed.spoken[0, :, start + 4 :] == IGNORE).all()
    silent = pack([Sample(s.text, s.prompt, s.response)], Layout(LEVELS, CODES))
    assert (silent.spoken == IGNORE).all()


def test_positions_count_anew_in_each_segment_or_go_on(rng: np.random.Generator) -> None:
    s = sample(rng, 3, 2, 4)
    restarted, running = (pack([s], Layout(LEVELS, CODES, restart=r)).position[0].tolist() for r in (True, False))
    assert restarted == [*range(6), *range(3), *range(5)]
    assert running == list(range(14))


@pytest.mark.parametrize("task", NAMES)
def test_every_task_can_be_read_back(task: str) -> None:
    """Pack → unpack returns the segments of the task's row and what it writes, then its stop symbol."""
    layout, s = Layout(LEVELS, CODES, PHONES), of_task(task)
    packed = pack([s, sample(np.random.default_rng(1), 9, 9, 9)], layout)
    segment, symbol, code = packed.segment[0].numpy(), packed.symbol[0].numpy(), packed.code[0].numpy()
    assert packed.header[0, 0] == 1 + NAMES.index(task)
    for name in TASKS[task].inputs:
        at = segment == Place[name.upper()]
        if name == "text":
            assert symbol[at][1:-1].tolist() == s.text.tolist()
        elif name == "chars":
            assert bytes((symbol[at] - layout.first_symbol("chars")).tolist()) == b"ab c"
        else:
            np.testing.assert_array_equal(code[:, at] - 1, s.codes(name))
    vocabulary = TASKS[task].output
    if vocabulary == "codes":
        np.testing.assert_array_equal(code[:, segment == Place.RESPONSE] - CODES - 1, s.response)
        return
    written = packed.written[0][packed.written[0] != IGNORE].tolist()
    assert written == [*s.symbols, layout.stop(vocabulary)]
    assert (symbol[segment == Place.SYMBOL] - layout.first_symbol(vocabulary)).tolist() == s.symbols.tolist()
    assert (packed.target[0] == IGNORE).all()


def test_symbol_ids_do_not_overlap() -> None:
    layout = Layout(LEVELS, CODES, PHONES)
    assert [layout.first_symbol(v) for v in ("phones", "chars", "digits")] == [0, PHONES, PHONES + CHARS + 1]
    assert layout.symbol_ids == PHONES + CHARS + 1 + DIGITS + 1


def test_a_block_of_frames_is_asked_of_as_many_starts(rng: np.random.Generator) -> None:
    s = sample(rng, response=5)
    packed = pack([s], Layout(LEVELS, CODES, block=3))
    start, target = int(packed.response[0]), packed.target[0, 0].numpy()
    assert (packed.segment[0, start : start + 3] == Place.START).all()
    np.testing.assert_array_equal(target[start : start + 6], [*s.response[0], CODES])
    assert (target[start + 6 :] == IGNORE).all()


def test_summing_levels_can_be_left_out(rng: np.random.Generator) -> None:
    s = sample(rng, response=4, level=2)
    code = pack([s], Layout(LEVELS, CODES, frames=False, sum_prompt=False, sum_response=False)).code[0].numpy()
    prompt, response = code[:, code[0] > 0], code[:, -4:]
    assert (prompt[1:] == 0).all()
    assert (response[[0, 2]] == 0).all() and (response[1] == s.response[1] + CODES + 1).all()


def test_what_is_before_a_parallel_output_does_not_see_it(rng: np.random.Generator) -> None:
    rows = [sample(rng, response=4, level=1), sample(rng, 2, 1, 3)]
    packed = pack(rows, Layout(LEVELS, CODES, frames=False))
    seen = packed.mask().dense(packed.segment.shape[1])[:, 0]
    start, length = int(packed.response[0]) + 1, int(packed.lengths[0])
    assert seen[0, :start, :start].all() and not seen[0, :start, start:].any()
    assert seen[0, start:length, :length].all() and not seen[0, :, length:].any()
    torch.testing.assert_close(seen[1], torch.ones_like(seen[1]).tril())
