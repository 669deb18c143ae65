"""The check that all of the text was said, in order."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from tests.tiny import CODES, build, sample
from vall_e.generation.alignment import IMPOSSIBLE, alignment_scores, best_path, read_along, trace
from vall_e.models.packing import pack


def _every_path(log_p: np.ndarray) -> float:
    frames, slots = log_p.shape
    found = []
    for steps in combinations(range(1, frames), slots - 1):  # the frames at which a path goes on to the next slot
        slot = np.searchsorted(steps, np.arange(frames), side="right")
        found.append(log_p[np.arange(frames), slot].sum())
    return max(found)


@pytest.mark.parametrize(("frames", "slots"), [(1, 1), (4, 1), (4, 4), (7, 3), (9, 5)])
def test_the_best_path_is_the_best_of_all(frames: int, slots: int) -> None:
    log_p = np.log(np.random.default_rng(frames).dirichlet(np.ones(slots), size=frames))
    assert best_path(log_p) == pytest.approx(_every_path(log_p))


def test_a_path_may_leave_nothing_out() -> None:
    said = np.repeat(np.arange(4), 5)
    sure = np.where(said[:, None] == np.arange(4), 0.0, -9.0)
    assert best_path(sure) == 0
    assert best_path(sure[said != 2]) == pytest.approx(-9)  # one frame at least is given to the word left out
    assert best_path(np.concatenate((sure, sure))) < -9  # said twice
    assert best_path(sure[:3]) == IMPOSSIBLE


def test_scores_do_not_depend_on_the_batch_and_equal_the_heads_own_log_p() -> None:
    model, rng = build(), np.random.default_rng(0)
    rows = [replace(sample(rng, text, 3, frames), spoken=None) for text, frames in ((3, 9), (5, 7), (2, 12))]
    together = alignment_scores(model, rows)
    assert together == pytest.approx([alignment_scores(model, [row])[0] for row in rows], abs=1e-4)
    packed = pack([rows[0]], model.layout)
    with torch.inference_mode():
        log_p = model.align(packed)[0].numpy()
    start = int(packed.response[0])
    assert together[0] == pytest.approx(_every_path(log_p[start : start + 10, 2:6]) / 10, abs=1e-4)


@pytest.mark.parametrize("kind", ["nar-len", "v2-nar"])
def test_kinds_that_only_demask_are_read_in_rows_without_a_mask(kind: str) -> None:
    """Each frame tells of itself; a row of a given length ends with its text, so a path has to arrive there."""
    model, rng = build(kind), np.random.default_rng(0)
    rows = [replace(sample(rng, text, 3, frames), spoken=None) for text, frames in ((3, 9), (5, 7), (2, 12))]
    together = alignment_scores(model, rows)
    assert together == pytest.approx([alignment_scores(model, [row])[0] for row in rows], abs=1e-4)
    packed = pack([replace(rows[0], mode="mask")], model.layout)
    assert not (packed.code[0] == 2 * CODES + 1).any()
    with torch.inference_mode():
        log_p = model.align(packed)[0].numpy()
    start = int(packed.response[0]) + 1
    frames, text = log_p[start : start + 9, 2:6], log_p[start : start + 9, 2:5]
    paths = [_every_path(frames[:, :3]), _every_path(frames)]  # from the last phone, or from the text's end
    assert together[0] == pytest.approx(max(paths) / 10, abs=1e-4)
    assert read_along(model, rows[:1])[0].tolist() == trace(text).tolist()
