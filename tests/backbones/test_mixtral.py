"""Our Mixtral against transformers' with the same weights; its balance loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests.backbones.checks import check_cache, check_causal
from tests.backbones.test_llama import copy_attention, hf_sizes
from tests.tiny import build, model_config, sample
from vall_e.backbones.mixtral import Mixtral
from vall_e.models.packing import pack

COUNT, ACTIVE = 4, 2
LENGTHS = torch.tensor([9, 5])


@pytest.fixture
def ours() -> Mixtral:
    torch.manual_seed(0)
    return Mixtral(model_config(backbone="mixtral", experts={"count": COUNT, "active": ACTIVE})).eval()


@pytest.fixture
def theirs(ours: Mixtral) -> MixtralModel:
    sizes = hf_sizes(ours.config) | {"num_local_experts": COUNT, "num_experts_per_tok": ACTIVE}
    model = MixtralModel(MixtralConfig(**sizes, rope_theta=ours.config.rope.base, sliding_window=None)).eval()
    copy_attention(ours, model)
    for mine, other in zip(ours.blocks, model.layers, strict=True):
        other.block_sparse_moe.gate.load_state_dict(mine.feedforward.router.state_dict())
        for a, b in zip(mine.feedforward.experts, other.block_sparse_moe.experts, strict=True):
            for name, hf_name in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
                getattr(b, hf_name).load_state_dict(getattr(a, name).state_dict())
    return model


def test_equals_transformers_and_so_does_the_balance_of_each_layer(ours: Mixtral, theirs: MixtralModel) -> None:
    """What is in the padding does not matter to the balance."""
    x, positions = torch.randn(2, 9, 32), torch.arange(9).expand(2, 9)
    real = torch.arange(9) < LENGTHS[:, None]
    with torch.no_grad():
        out = theirs(inputs_embeds=x, position_ids=positions, output_router_logits=True)
        torch.testing.assert_close(ours(x, positions), out.last_hidden_state, atol=1e-5, rtol=1e-4)
        ours.train()(x, positions)
        weight, got = ours.auxiliary(real)["balance"]
        each = [load_balancing_loss_func((layer,), COUNT, ACTIVE, real.float()) for layer in out.router_logits]
        torch.testing.assert_close(got, torch.stack(each).mean())
        assert weight == ours.config.experts.balance_weight
        ours(torch.where(real[..., None], x, torch.randn_like(x)), positions)
        torch.testing.assert_close(ours.auxiliary(real)["balance"][1], got)


def test_rows_do_not_depend_on_their_batch(ours: Mixtral) -> None:
    """Although positions of all rows meet in the same experts."""
    x, positions = torch.randn(6, 9, 32), torch.arange(9).expand(6, 9)
    with torch.no_grad():
        together = ours(x, positions)
        for i in range(6):
            torch.testing.assert_close(together[i : i + 1], ours(x[i : i + 1], positions[:1]), atol=1e-5, rtol=1e-4)


def test_causal_and_cached_equals_uncached(ours: Mixtral) -> None:
    check_causal(ours)
    check_cache(ours)


def test_the_balance_belongs_to_the_loss_of_training_only() -> None:
    models = [
        build(backbone="mixtral", experts={"count": COUNT, "balance_weight": weight}).train() for weight in (0.0, 0.5)
    ]
    rng = np.random.default_rng(0)
    packed = pack([sample(rng, 3, 2, 8), sample(rng, 4, 3, 4)], models[0].layout)
    (plain, _), (loss, figures) = (model.loss(packed) for model in models)
    torch.testing.assert_close(loss - plain, 0.5 * figures["balance"])
    assert figures["balance"] >= 0.9 * ACTIVE and not figures["balance"].requires_grad
    evaluated, figures = models[1].eval().loss(packed)
    torch.testing.assert_close(evaluated, plain)
    assert "balance" not in figures
