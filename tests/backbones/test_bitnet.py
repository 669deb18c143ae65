"""BitNet: Llama's blocks on three weight values; learns, decodes, is causal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.generation.oracle import GREEDY, make_prompts, uncached
from tests.tiny import build, model_config, overfit, sample
from vall_e.backbones.base import build_backbone
from vall_e.backbones.bitnet import Bitnet
from vall_e.generation.ar import decode
from vall_e.nn.bitlinear import BitLinear, ternary


def test_it_is_llama_with_the_rounded_weights_and_inputs() -> None:
    """A Llama whose linears are fed rounded weights and inputs says the same: nothing else differs."""
    torch.manual_seed(0)
    bitnet = build_backbone(model_config(backbone="bitnet")).eval()
    llama = build_backbone(model_config()).eval()
    llama.load_state_dict(bitnet.state_dict())
    assert isinstance(bitnet, Bitnet)
    assert all(type(m) is BitLinear for m in bitnet.modules() if isinstance(m, nn.Linear))
    for linear in [m for m in llama.modules() if isinstance(m, nn.Linear)]:
        values, scale = ternary(linear.weight.detach())
        linear.weight.data = values * scale

        def rounded(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            normal = torch.nn.functional.rms_norm(inputs[0], inputs[0].shape[-1:], eps=1e-5)
            step = normal.abs().amax(-1, keepdim=True) / 127
            return (normal / step).round() * step

        linear.register_forward_pre_hook(rounded)
    x, positions = torch.randn(2, 6, 32), torch.arange(6).expand(2, 6)
    torch.testing.assert_close(bitnet(x, positions), llama(x, positions), atol=1e-3, rtol=1e-3)


def test_causal_by_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 32, requires_grad=True)
    build_backbone(model_config(backbone="bitnet"))(x, torch.arange(6).expand(1, 6))[0, 2].sum().backward()
    assert x.grad[0, 3:].abs().max() == 0 and x.grad[0, :3].abs().amax(-1).min() > 0


@pytest.mark.parametrize(("kind", "levels"), [("ar-depth", (0, 0)), ("ar+nar", (0, 1, 2))])
def test_it_overfits_one_batch(kind: str, levels: tuple[int, ...]) -> None:
    model, rng = build(kind, backbone="bitnet"), np.random.default_rng(0)
    loss, _ = overfit(model, [sample(rng, level=level) for level in levels])
    assert loss < 0.05


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_cached_ragged_batch_equals_uncached_single_rows(strength: float) -> None:
    model, prompts = build(backbone="bitnet"), make_prompts()
    got = decode(model, prompts, GREEDY.model_copy(update={"guidance": strength}), [0, 1, 2], [8, 8, 8])
    with torch.no_grad():
        for candidates, prompt in zip(got, prompts, strict=True):
            assert candidates[0].codes.tolist() == uncached(model, prompt, 8, strength).tolist()
