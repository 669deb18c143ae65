"""A voice model on each backbone: it learns, and what it decodes with a cache is what it would say without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.generation.oracle import GREEDY, make_prompts, uncached
from tests.tiny import LEVELS, build, overfit, sample
from vall_e.generation.ar import decode

BACKBONES = {
    "mixtral": {"experts": {"count": 4}},
    "transformer": {},
    "mamba": {"mamba": {"state": 4}},
    "mamba2": {"mamba": {"state": 8, "head_dim": 16}},
}
each = pytest.mark.parametrize("name", BACKBONES)


@each
def test_overfits_one_batch(name: str) -> None:
    model, rng = build(backbone=name, **BACKBONES[name]), np.random.default_rng(0)
    _, figures = overfit(model, [sample(rng), sample(rng, 3, 2, 4)], 120)
    assert sum(figures[f"loss.level{level}"] for level in range(LEVELS)) / LEVELS < 0.05
    assert all(figures[f"accuracy.level{level}"] == 1 for level in range(LEVELS))


@each
@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_cached_ragged_decoding_equals_recomputing(name: str, strength: float) -> None:
    model, rows = build(backbone=name, **BACKBONES[name]), make_prompts()
    got = decode(model, rows, GREEDY.model_copy(update={"guidance": strength}), [0, 1, 2], [12, 12, 12])
    with torch.no_grad():
        for candidates, prompt in zip(got, rows, strict=True):
            np.testing.assert_array_equal(candidates[0].codes, uncached(model, prompt, 12, strength))
