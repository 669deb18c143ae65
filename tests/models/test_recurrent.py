"""The whole model on backbones with a past of constant size: it learns, and decodes as it would recompute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.generation.oracle import GREEDY, make_prompts, uncached
from tests.tiny import LEVELS, build, overfit, sample
from vall_e.generation.ar import decode
from vall_e.models.packing import pack

SLIDING = {"backbone": "yoco", "yoco": {"self_decoder": "sliding", "window": 4}}
MODELS = (
    ("ar-depth", {"backbone": "retnet"}),
    ("ar-depth", {"backbone": "yoco"}),
    ("ar-depth", SLIDING),
    ("ar+nar", {"backbone": "retnet", "bidirectional": "flip"}),
    ("ar+nar", {"backbone": "yoco", "bidirectional": "flip"}),
    ("ar+nar", SLIDING),
)


@pytest.mark.parametrize(("kind", "changes"), MODELS)
def test_it_overfits_one_batch_with_all_its_parameters(kind: str, changes: dict) -> None:
    model, rng = build(kind, **changes).train(), np.random.default_rng(0)
    made = [sample(rng, level=level) for level in ((0, 0) if kind == "ar-depth" else (0, 1, 2))]
    made = [replace(s, language=1, tone=1) for s in made]
    model.loss(pack(made, model.layout), alignment_weight=1.0)[0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()] == []
    loss, figures = overfit(model, made, 100)
    assert loss < 0.05
    assert all(figures[f"accuracy.level{level}"] == 1 for level in range(LEVELS))


@pytest.mark.parametrize(("kind", "changes"), MODELS)
@pytest.mark.parametrize(("strength", "positions"), [(0.0, "sequence"), (1.5, "segment")])
def test_cached_ragged_batch_equals_uncached_single_rows(
    kind: str, changes: dict, strength: float, positions: str
) -> None:
    model, prompts = build(kind, positions=positions, **changes), make_prompts()
    prompts[1] = replace(prompts[1], response=prompts[2].prompt[:, :2], spoken=None)
    got = decode(model, prompts, GREEDY.model_copy(update={"guidance": strength}), [0, 1, 2], [12, 12, 12])
    with torch.no_grad():
        for candidates, prompt in zip(got, prompts, strict=True):
            np.testing.assert_array_equal(candidates[0].codes, uncached(model, prompt, 12, strength))
