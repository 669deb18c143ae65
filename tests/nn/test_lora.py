"""Adapters: nothing at the start, rank at most r, two forms of one thing, merged exactly, one per level."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import LEVELS, build, model_config, sample, train_config
from vall_e.decoding import SamplingConfig
from vall_e.family import LoraConfig
from vall_e.generation.ar import decode
from vall_e.models.checkpoint import VoiceError, load_adapters, save_adapters
from vall_e.models.packing import Packed, pack
from vall_e.models.vall_e import VallE
from vall_e.nn.lora import Adapter, adapter_state, adapters, load_adapter_state
from vall_e.training.optimizers import build_optimizer

FORMS = ("layer", "parametrisation")


def _lora(**changes: object) -> LoraConfig:
    return LoraConfig(**({"rank": 3, "alpha": 6.0} | changes))


def _adapted(kind: str = "ar-depth", trained: bool = True, **changes: object) -> VallE:
    """A tiny model with adapters that, when ``trained``, do something."""
    model = build(kind)
    torch.manual_seed(1)
    model.adapt(_lora(**changes))
    for adapter in adapters(model).values() if trained else ():
        adapter.b.data.normal_(std=0.3)
    return model


def _base(model: VallE) -> dict[str, torch.Tensor]:
    """All but the adapters, under the names of a model without them."""
    own = tuple(name for name, child in model.named_modules() if isinstance(child, Adapter))
    return {
        name.replace(".parametrizations.weight.original", ".weight"): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(own)
    }


def _batch(model: VallE, levels: tuple[int, ...] = (0, 0)) -> Packed:
    rng = np.random.default_rng(0)
    return pack([sample(rng, 3 + i, 2, 5, level) for i, level in enumerate(levels)], model.layout)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_changes_at_the_start_and_something_after(form: str) -> None:
    base, fresh, trained = build(), _adapted(trained=False, form=form), _adapted(form=form)
    want = base.hidden(_batch(base))
    torch.testing.assert_close(fresh.hidden(_batch(base)), want)
    assert (trained.hidden(_batch(base)) - want).abs().max() > 0.1


def test_the_change_has_the_rank_and_the_scale() -> None:
    model = _adapted()
    for adapter in adapters(model).values():
        zero = torch.zeros(adapter.b.shape[1], adapter.a.shape[2])
        change = adapter(zero).detach()
        assert torch.linalg.matrix_rank(change) == 3
        torch.testing.assert_close(change, 2.0 * adapter.b[0].detach() @ adapter.a[0].detach())
    assert len(adapters(model)) == 7 * model.config.layers


def test_both_forms_are_equal_with_gradients() -> None:
    layer, weight = (_adapted(form=form) for form in FORMS)
    load_adapter_state(weight, adapter_state(layer))
    batch = _batch(layer)
    torch.testing.assert_close(layer.hidden(batch), weight.hidden(batch), atol=1e-5, rtol=1e-4)
    for model in (layer, weight):
        model.train().loss(batch)[0].backward()
    for a, b in zip(adapters(layer).values(), adapters(weight).values(), strict=True):
        torch.testing.assert_close(a.a.grad, b.a.grad, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(a.b.grad, b.b.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_merging_is_exact_and_leaves_plain_layers(form: str) -> None:
    model = _adapted(form=form, targets=("q", "down"))
    assert {name.split(".")[-1] for name in adapters(model)} == {"q", "down"}
    weights = _base(model)
    expected = {
        f"{name}.weight": adapter(weights[f"{name}.weight"]).detach() for name, adapter in adapters(model).items()
    }
    want = model.hidden(_batch(model))
    model.merge_adapters()
    assert model.config == build().config
    state = model.state_dict()
    assert state.keys() == build().state_dict().keys()
    assert all(torch.equal(state[name], expected.get(name, weights[name])) for name in state)
    torch.testing.assert_close(model.hidden(_batch(model)), want, atol=1e-5, rtol=1e-4)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("form", FORMS)
def test_training_moves_the_adapters_and_nothing_else(form: str, optimizer: str) -> None:
    model = _adapted(trained=False, form=form).train()
    before = {name: t.clone() for name, t in _base(model).items()}
    tuned = build_optimizer(model, train_config(optimizer=optimizer, lr=0.02))
    batch, losses = _batch(model), []
    for _ in range(40):
        loss, _ = model.loss(batch)
        tuned.zero_grad()
        loss.backward()
        tuned.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(before[name], t) for name, t in _base(model).items())
    assert before.keys() == build().state_dict().keys()


@pytest.mark.parametrize("form", FORMS)
def test_adapters_alone_are_saved_and_put_on_a_base(form: str, tmp_path: Path) -> None:
    model, path = _adapted(form=form), tmp_path / "adapters.safetensors"
    save_adapters(path, model)
    assert path.stat().st_size < 4 * sum(t.numel() for t in adapter_state(model).values()) + 4000
    again = build()
    load_adapters(path, again)
    assert again.config == model.config
    assert torch.equal(again.hidden(_batch(model)), model.hidden(_batch(model)))


@pytest.mark.parametrize("changes", [{}, {"form": "parametrisation"}, {"per_level": True}])
def test_a_copy_has_adapters_of_its_own(changes: dict) -> None:
    """The moving average of the weights is a deep copy of the model."""
    model = _adapted("ar+nar", **changes)
    batch = _batch(model, (1, 0))
    want, copied = model.hidden(batch), deepcopy(model)
    assert torch.equal(copied.hidden(batch), want)
    for adapter in adapters(copied).values():
        adapter.b.data.zero_()
    torch.testing.assert_close(copied.hidden(batch), build("ar+nar").hidden(batch))
    assert torch.equal(model.hidden(batch), want)


def test_adapters_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "adapters.safetensors"
    save_adapters(path, _adapted())
    with pytest.raises(VoiceError, match=r"blocks\.0\.feedforward.*shape"):
        load_adapters(path, build(ff_dim=40))
    state = {name: t for name, t in adapter_state(_adapted()).items() if "blocks.1" not in name}
    with pytest.raises(ValueError, match=r"blocks\.1.*missing"):
        load_adapter_state(_adapted(), state)
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(VoiceError, match="other does not hold adapters"):
        load_adapters(tmp_path / "other", build())


def test_each_row_takes_the_adapter_of_its_level() -> None:
    model = _adapted("ar+nar", per_level=True)
    assert all(len(adapter.a) == LEVELS for adapter in adapters(model).values())
    rng = np.random.default_rng(0)
    samples = [sample(rng, 3 + i, 2, 5, level) for i, level in enumerate((0, 2, 1, 0))]
    together = model.hidden(pack(samples, model.layout))
    for row, s in enumerate(samples):
        torch.testing.assert_close(
            together[row, : model.layout.length(s)], model.hidden(pack([s], model.layout))[0], atol=1e-5, rtol=1e-4
        )
    single = build("ar+nar")
    single.adapt(_lora())
    level = samples[1].level
    state = {name: t[level : level + 1] for name, t in adapter_state(model).items()}
    load_adapter_state(single, state)
    want = single.hidden(pack(samples[1:2], single.layout))[0]
    torch.testing.assert_close(together[1, : model.layout.length(samples[1])], want, atol=1e-5, rtol=1e-4)


def test_levels_train_apart_and_level_0_decodes_with_its_own() -> None:
    model = _adapted("ar+nar", per_level=True).train()
    model.loss(_batch(model, (1, 1)))[0].backward()
    for adapter in adapters(model).values():
        assert adapter.b.grad[1].abs().max() > 0 and adapter.b.grad[[0, 2]].abs().max() == 0
    model.eval()
    prompts = [sample(np.random.default_rng(0), 3, 4, 0)]
    sampling = SamplingConfig(ar={"temperature": 0.0}, guidance=1.0, candidates=1)
    want = decode(model, prompts, sampling, [0], [6])[0][0].codes
    for adapter in adapters(model).values():
        adapter.b.data[1:] += 1.0
    np.testing.assert_array_equal(decode(model, prompts, sampling, [0], [6])[0][0].codes, want)
    with pytest.raises(ValueError, match="neither merged"):
        model.merge_adapters()


def test_a_level_must_be_known() -> None:
    model = _adapted("ar+nar", per_level=True)
    with pytest.raises(ValueError, match="level of each row"):
        model.backbone(torch.randn(2, 3, 32), torch.arange(3).expand(2, 3))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora": {"per_level": True, "form": "parametrisation"}, "kind": "ar+nar"}, "needs form layer"),
        ({"lora": {"per_level": True}}, "has all levels"),
        ({"lora": {"targets": []}}, "names no layer"),
        ({"lora": {}, "linear": "ternary"}, "dense"),
        ({"lora": {}, "backbone": "bitnet"}, "dense"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model_config(**changes)
