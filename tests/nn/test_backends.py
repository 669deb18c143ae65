"""Every backend of attention against the written-out one, with all it claims; refusals say why."""

from __future__ import annotations

from importlib.util import find_spec
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import build, model_config, sample
from vall_e.config import Params
from vall_e.family import CAUSAL_ONLY, ModelConfig
from vall_e.models.packing import pack
from vall_e.nn.attention import Attention, use_attention
from vall_e.nn.backends import KERNELS, attend
from vall_e.nn.masks import Mask, causal

T = 7
HERE = [name for name, kernel in KERNELS.items() if kernel.cpu]
LENGTHS = torch.tensor([T, 4])
SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 0, 0, 0]])
MASKS = {
    "causal": None,
    "full": Mask(LENGTHS, torch.tensor([True, True])).dense(T),
    "mixed": Mask(LENGTHS, torch.tensor([False, True])).dense(T),
    "segmented": Mask(LENGTHS, torch.tensor([False, True]), SEGMENTS).dense(T),
    "sliding": causal(T, T, 3)[None, None],
    "behind a past": causal(3, T)[None, None],
}


def _inputs(positions: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=generator, requires_grad=True) for n in (positions, T, T)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", [name for name in HERE if name != "eager"])
def test_a_backend_equals_eager_forward_and_backward_or_refuses(name: str, mask: str) -> None:
    visible = MASKS[mask]
    positions = T if visible is None else visible.shape[2]
    ours, eager = _inputs(positions), _inputs(positions)
    if visible is not None and not KERNELS[name].masks:
        with pytest.raises(ValueError, match=f"attention {name} is for causal attention only"):
            attend(*ours, visible, name)
        return
    got, want = attend(*ours, visible, name), attend(*eager, visible, "eager")
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    for out in (got, want):
        (out.square() * torch.linspace(0, 1, 8)).sum().backward()
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", HERE)
def test_no_gradient_and_no_value_passes_a_mask(name: str) -> None:
    q, k, v = _inputs(T)
    attend(q, k, v, None, name)[:, :, 2].sum().backward()
    assert v.grad[:, :, 3:].abs().max() == 0 and v.grad[:, :, :3].abs().min() > 0


@pytest.mark.parametrize("name", sorted(KERNELS.keys() - set(HERE)))
def test_what_cannot_run_here_is_refused_with_the_reason(name: str) -> None:
    package = KERNELS[name].package
    missing = package is not None and find_spec(package) is None
    reason = rf"{package}.*vall-e-workflow\[attention\]" if missing else "does not run on a cpu device"
    with pytest.raises(ImportError if missing else ValueError, match=reason):
        attend(*_inputs(T), None, name)


def test_a_kernel_without_gradients_is_refused_only_where_gradients_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "forward", type(KERNELS["eager"])(KERNELS["eager"].run, gradients=False))
    with pytest.raises(ValueError, match="no gradients"):
        attend(*_inputs(T), None, "forward")
    with torch.no_grad():
        torch.testing.assert_close(attend(*_inputs(T), None, "forward"), attend(*_inputs(T), None, "eager"))


def test_the_configuration_knows_the_backends_and_their_limits() -> None:
    names = get_args(ModelConfig.model_fields["attention"].annotation)
    assert set(names) == set(KERNELS)
    assert {name for name, kernel in KERNELS.items() if not kernel.masks} == set(CAUSAL_ONLY)
    with pytest.raises(ValueError, match="flash is causal only"):
        model_config("ar+nar", attention="flash")
    with pytest.raises(ValueError, match="no gradients"):
        Params(model=model_config(attention="sageattention"))
    with pytest.raises(ValueError, match="take one of auto, eager"):
        use_attention(build(), "flsh")


@pytest.mark.parametrize("name", ["eager", "math", "flash", "flex"])
def test_a_model_computes_with_the_backend_it_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, told, rng = build(), build(attention=name), np.random.default_rng(0)
    assert {m.backend for m in told.modules() if isinstance(m, Attention)} == {name}
    packed = pack([sample(rng), sample(rng, 2, 3, 4)], plain.layout)
    torch.testing.assert_close(told.hidden(packed), plain.hidden(packed), atol=1e-5, rtol=1e-4)
    monkeypatch.setitem(KERNELS, name, type(KERNELS[name])(lambda q, *_: torch.full_like(q, torch.nan)))
    assert told.hidden(packed).isnan().all()
