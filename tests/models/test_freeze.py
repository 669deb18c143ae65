"""Parts that a training leaves as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import build
from tests.training.test_run import make_project, params, run
from vall_e.family import LoraConfig
from vall_e.models.freeze import freeze, matches, parts


@pytest.mark.parametrize("pattern, name, is_part", [
    ("embeddings", "embeddings.symbol.weight", True),
    ("embeddings.code", "embeddings.symbol.weight", False),
    ("emb", "embeddings.symbol.weight", False),
    ("blocks.0-3", "backbone.blocks.3.attention.q.weight", True),
    ("blocks.0-3", "backbone.blocks.4.attention.q.weight", False),
    ("blocks.*.attention", "backbone.blocks.11.attention.q.weight", True),
    ("blocks.*.attention", "backbone.blocks.11.norm.weight", False),
    ("backbone", "backbone.norm.weight", True),
    ("backbone.norm.weight.more", "backbone.norm.weight", False),
])  # fmt: skip
def test_a_pattern_is_the_beginning_of_a_name(pattern: str, name: str, is_part: bool) -> None:
    assert matches(pattern, name) == is_part


def test_parts_that_are_listed_are_patterns_of_the_whole_model() -> None:
    model = build(layers=3)
    assert "blocks.0-2" in parts(model) and "heads" in parts(model)
    named = [name for name, _ in model.named_parameters()]
    assert all(any(matches(part, name) for name in named) for part in parts(model))
    assert all(any(matches(part, name) for part in parts(model)) for name in named)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.freeze: 'head' names no part.*embeddings\.symbol.*blocks\.0-1"):
        freeze(build(), ["head"])
    with pytest.raises(ValueError, match=r"train\.thaw: 'blocks\.7'"):
        freeze(build(), [], ["blocks.7"])
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(build(), ["embeddings", "backbone", "heads", "alignment"])


def test_parts_beside_adapters_are_trained() -> None:
    model = build()
    model.adapt(LoraConfig(rank=2))
    freeze(model, [], ["heads", "embeddings.symbol"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("adapter" in n or n.startswith(("heads.", "embeddings.symbol")) for n in trained)
    assert any("adapter" in n for n in trained) and "embeddings.symbol.weight" in trained


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_frozen_weights_end_as_they_began_and_others_do_not(tmp_path: Path, optimizer: str) -> None:
    make_project(tmp_path)
    run(tmp_path, params(1))
    (tmp_path / "models/voice").rename(tmp_path / "base")
    frozen = ("embeddings", "blocks.0")
    run(tmp_path, params(2, init_from="base", optimizer=optimizer, freeze=frozen))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "models/voice"))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == any(matches(pattern, name) for pattern in frozen), name
