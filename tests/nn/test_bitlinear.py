"""Three weight values, gradients that pass, packed layers that say the same in 2 bits a weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models.test_vall_e import _config
from tests.tiny import build, sample
from vall_e.models.checkpoint import load_model, save_model
from vall_e.models.packing import pack
from vall_e.nn.bitlinear import BitLinear, PackedBitLinear, eight_bits, ternary, use_linear


def _layer(inputs: int = 18, outputs: int = 7, bias: bool = True) -> BitLinear:
    torch.manual_seed(0)
    return BitLinear.of(nn.Linear(inputs, outputs, bias=bias))


def test_weights_have_three_values_and_inputs_eight_bits() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(40, 30), 5 * torch.randn(6, 30)
    values, scale = ternary(weight)
    assert set(values.unique().tolist()) == {-1.0, 0.0, 1.0}
    torch.testing.assert_close(scale, weight.abs().mean())
    want = torch.where(weight.abs() < scale / 2, 0.0, weight.sign())
    assert torch.equal(values, want)
    whole, step = eight_bits(x)
    assert torch.equal(whole, whole.round()) and torch.equal(whole.abs().amax(-1), torch.full((6,), 127.0))
    assert ((whole * step - x).abs() <= step / 2 + 1e-6).all()


def test_forward_equals_the_definition_and_gradients_pass_straight_through() -> None:
    layer = _layer()
    x = torch.randn(4, 3, 18, requires_grad=True)
    y = layer(x)
    values, scale = ternary(layer.weight.detach())
    normal = x.detach() / (x.detach().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normal.requires_grad_()
    whole, step = eight_bits(normal.detach())
    torch.testing.assert_close(y, F.linear(whole * step, values * scale, layer.bias))
    upstream = torch.randn_like(y)
    y.backward(upstream)
    torch.testing.assert_close(layer.weight.grad, torch.einsum("bto,bti->oi", upstream, whole * step))
    oracle = F.rms_norm(x2 := x.detach().clone().requires_grad_(), (18,), eps=1e-5)
    (oracle @ (values * scale).T).backward(upstream)
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 1)))


def test_the_scale_of_inputs_does_not_matter() -> None:
    layer, x = _layer(bias=False), torch.randn(5, 18)
    torch.testing.assert_close(layer(x), layer(1000 * x), atol=0.05, rtol=0.01)


@pytest.mark.parametrize("inputs", [16, 17, 18, 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_equals_unpacked_exactly(inputs: int, dtype: torch.dtype) -> None:
    layer = _layer(inputs).to(dtype)
    packed = PackedBitLinear(layer)
    x = torch.randn(4, inputs, dtype=dtype)
    assert layer(x).dtype == packed(x).dtype == dtype
    assert torch.equal(packed(x), layer(x))
    assert torch.equal(packed.weight(dtype), ternary(layer.weight.detach())[0])


def test_bytes_are_two_bits_a_weight() -> None:
    layer = _layer(256, 64, bias=False)
    packed = PackedBitLinear(layer)
    assert [p.dtype for p in packed.buffers()] == [torch.uint8, torch.float32]
    size = sum(b.numel() * b.element_size() for b in packed.buffers())
    assert size == 256 * 64 // 4 + 4
    assert size - 4 == 2 * layer.weight.numel() / 8  # bfloat16 has 2 bytes a weight
    assert list(packed.parameters()) == []


@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar"])
def test_a_packed_voice_on_disk_speaks_as_the_trained_one(kind: str, tmp_path: Path) -> None:
    model = build(kind, linear="ternary")
    config = _config(kind).model_copy(update={"model": model.config})
    packed = pack([sample(np.random.default_rng(0))], model.layout)
    with torch.no_grad():
        want = model.hidden(packed)
    save_model(tmp_path / "full", model, config)
    use_linear(model, "packed")
    assert not any(isinstance(m, BitLinear) for m in model.modules())
    save_model(tmp_path / "packed", model, config)
    for folder in ("full", "packed"):
        again, _ = load_model(tmp_path / folder)
        with torch.no_grad():
            assert torch.equal(again.hidden(packed), want)
    saved = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("full", "packed")]
    weights = sum(p.numel() for n, p in build(kind).backbone.blocks.named_parameters() if p.dim() == 2)
    assert saved[0] - saved[1] == pytest.approx(weights * (4 - 0.25), rel=0.03)  # but for scales and names


def test_only_the_linears_of_the_blocks_are_swapped_and_dense_swaps_nothing() -> None:
    model = build(linear="ternary")
    kinds = {type(m) for m in model.backbone.blocks.modules() if isinstance(m, nn.Linear)}
    assert kinds == {BitLinear}
    assert not any(isinstance(m, BitLinear) for m in model.heads.modules())
    dense = build()
    assert dense.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(dense.state_dict().values(), model.state_dict().values(), strict=True))
    assert not any(isinstance(m, BitLinear) for m in dense.modules())
