"""LayerSkip: which rows skip which layers, which exits are trained and how much, and that they learn."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import build, model_config, sample, train_config
from vall_e.config import Params
from vall_e.family import BACKBONES
from vall_e.models.packing import Packed, pack
from vall_e.models.vall_e import VallE
from vall_e.nn.layerskip import drop_layers, dropout_rates, exit_weights
from vall_e.regimen import LayerSkipConfig
from vall_e.training.module import VallEModule

SMALL = {"mamba": {"mamba": {"state": 4}}, "mamba2": {"mamba": {"state": 8, "head_dim": 16}}}
BACKBONE_OPTIONS = [
    *((name, SMALL.get(name, {})) for name in BACKBONES),
    *((name, SMALL.get(name, {}) | {"bidirectional": "flip"}) for name in ("mamba", "mamba2", "retnet", "yoco")),
    ("yoco", {"yoco": {"self_decoder": "sliding", "window": 4}}),
]


class _Add(nn.Module):
    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x + other


def _batch(model: VallE) -> Packed:
    rng = np.random.default_rng(0)
    return pack([sample(rng, 4, 3, 6), sample(rng, 5, 2, 5)], model.layout)


def test_rates_rise_from_nothing_to_the_greatest() -> None:
    rates = dropout_rates(5, 0.4)
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.4)
    assert rates[2] == pytest.approx(0.4 * (math.sqrt(2) - 1))
    assert rates == sorted(rates)


def test_rows_skip_layers_at_their_rates_in_training_only_and_by_torchs_seed() -> None:
    blocks = nn.ModuleList(_Add() for _ in range(3))
    drop_layers(blocks, 0.5)
    x, one = torch.zeros(20_000, 1, 1), torch.ones(1)

    def kept() -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [block(x, one)[:, 0, 0] for block in blocks]

    first = kept()
    for rows, rate in zip(first, dropout_rates(3, 0.5), strict=True):
        assert rows.mean() == pytest.approx(1 - rate, abs=0.015)
    assert torch.corrcoef(torch.stack(first[1:]))[0, 1].abs() < 0.03  # layers are drawn apart
    assert all(torch.equal(a, b) for a, b in zip(first, kept(), strict=True))
    blocks.eval()
    assert all(rows.min() == 1 for rows in kept())


def test_a_skipped_row_has_the_output_of_the_layer_before_and_no_gradient_of_the_skipped() -> None:
    model = build(layers=3).train()
    drop_layers(model.backbone.blocks, 1.0)  # the last layer is always skipped, the second with 1 in 0.41
    packed = _batch(model)
    torch.manual_seed(0)
    states = list(model.states(packed))
    assert torch.equal(states[2], states[1])
    model.loss(packed)[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.backbone.blocks[2].parameters())
    assert model.backbone.blocks[0].attention.q.weight.grad.any()


@pytest.mark.parametrize(("backbone", "options"), BACKBONE_OPTIONS)
def test_layers_of_every_backbone_are_skipped_and_exits_stop_before_later_ones(backbone: str, options: dict) -> None:
    """A layer that is always skipped changes nothing and has no gradient; nor have those behind a trained exit."""
    kind = "ar+nar" if options.get("bidirectional") == "flip" else "ar-depth"
    model, rng = build(kind, backbone=backbone, layers=4, **options).train(), np.random.default_rng(0)
    assert model.backbone.capabilities.early_exit
    packed = pack([sample(rng), sample(rng, 5, 2, 5, level=int(kind == "ar+nar"))], model.layout)
    blocks = model.backbone.blocks

    def moved() -> list[bool]:
        """Which blocks have a gradient; it is forgotten."""
        found = [any(p.grad is not None and bool(p.grad.any()) for p in block.parameters()) for block in blocks]
        model.zero_grad()
        return found

    *_, before, last = model.states(packed)
    assert not torch.equal(last, before)
    hidden = model.backbone.norm(list(model.states(packed))[1])
    model._predictions(hidden, packed).mean(hidden).backward()
    assert moved() == [True, True, False, False]
    drop_layers(blocks, 1.0)
    torch.manual_seed(0)
    *_, before, last = model.states(packed)
    assert torch.equal(last, before)
    model._predictions(model.backbone.norm(last), packed).mean(last).backward()
    first, *_, skipped = moved()
    assert first and not skipped
    model.eval()
    *_, before, last = model.states(packed)
    assert not torch.equal(last, before)


def test_weights_of_exits_are_the_papers() -> None:
    """By hand, four layers, scale 0.5: 0, 0.5 * 1, 0.5 * 3 and 3 + 0.5 * 3."""
    np.testing.assert_allclose(exit_weights(4, 0.5, 1, 0), np.array([0, 0.5, 1.5, 4.5]) / 6.5)
    assert exit_weights(4, 0.0, 1, 7) == [0, 0, 0, 1]
    for step in range(6):
        weights = exit_weights(4, 0.5, 3, step)
        on = [layer for layer in range(3) if (layer + step) % 3 == 0]
        assert sum(weights) == pytest.approx(1) and weights[3] > 0
        assert all(weight == 0 for layer, weight in enumerate(weights[:3]) if layer not in on)
    seen = np.sum([np.array(exit_weights(4, 0.5, 3, step)) > 0 for step in range(3)], axis=0)
    assert seen.tolist() == [0, 1, 1, 3]  # the first exit weighs nothing, the others have their turn


def test_the_loss_is_the_weighted_sum_of_the_losses_of_exits() -> None:
    model, shares = build("ar-depth", layers=3, alignment=False), {"level0": 0.5, "level1": 2.0}
    packed, weights, factors = _batch(model), [0.0, 0.25, 0.75], {"level0": 1.0, "level1": 0.5, "level2": 0.0}

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    states, parts = list(model.states(packed)), {}
    for layer in (2, 1):  # in the order of the loss, which is that of the sums in the gradients
        hidden = model.backbone.norm(states[layer])
        parts[layer] = model._predictions(hidden, packed, 0.1, factors, shares).mean(hidden)
    got, figures = model.loss(packed, 0.1, 0.0, factors, weights, shares=shares)
    plain, want = model.loss(packed, 0.1, 0.0, factors, shares=shares)
    assert torch.equal(got, 0.75 * parts[2] + 0.25 * parts[1]) and torch.equal(plain, parts[2])
    assert figures.keys() == want.keys() and all(torch.equal(figures[key], want[key]) for key in want)
    mine, theirs = gradients(got), gradients(0.75 * parts[2] + 0.25 * parts[1])
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_early_exits_make_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which symbol is the likeliest is asked for the accuracies of the last layer alone."""
    model, asked, argmax = build(layers=4), [], torch.Tensor.argmax
    monkeypatch.setattr(torch.Tensor, "argmax", lambda *words, **more: asked.append(1) or argmax(*words, **more))
    packed = _batch(model)
    model.loss(packed)
    plain = len(asked)
    model.loss(packed, exit_weights=[0.25] * 4)
    assert len(asked) == 2 * plain > 0


def test_training_teaches_the_early_exit_what_plain_training_does_not() -> None:
    def early_loss(layerskip: LayerSkipConfig | None) -> tuple[float, float]:
        model = build(layers=4, alignment=False).train()
        train = train_config(layerskip=layerskip, optimizer="adamw", lr=5e-3, label_smoothing=0.0)
        module, packed = VallEModule(model, train), _batch(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        module.log_dict = module.log = lambda *_, **__: None
        module.trainer = SimpleNamespace(global_rank=0, world_size=1)
        for step in range(60):
            type(module).global_step = step
            loss = module.training_step(packed, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            hidden = [model.backbone.norm(state) for state in model.states(packed)]
            return tuple(float(model._predictions(hidden[at], packed).mean(hidden[at])) for at in (1, 3))

    step = VallEModule.global_step
    try:
        early, last = early_loss(LayerSkipConfig(max_dropout=0.1, exit_weight=1.0, rotate=3))
        plain_early, _ = early_loss(None)
    finally:
        VallEModule.global_step = step
    assert early < 0.5 * plain_early
    assert last < 0.5


def test_what_cannot_work_is_refused() -> None:
    train = train_config(layerskip=LayerSkipConfig())
    assert Params(model=model_config(), train=train).train.layerskip.rotate == 4
    with pytest.raises(ValueError, match=r"layers of 2 or more"):
        Params(model=model_config(layers=1), train=train)
