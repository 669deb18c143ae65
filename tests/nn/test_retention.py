"""Retention: its three forms, its decays, padding, numbers at the edge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vall_e.nn.retention import Retention, chunked, parallel, recurrent
from vall_e.nn.rope import rotary

B, H, T, d = 2, 4, 11, 8


def _inputs(gated: bool) -> list[Tensor]:
    """q, k, v [B, H, T, d] and log decays [B, H, T] of a layer."""
    torch.manual_seed(0)
    x = torch.randn(B, T, H * d)
    decays = Retention(H * d, H, gated).log_decay(x).detach().clone()
    return [t.requires_grad_() for t in (*torch.randn(3, B, H, T, d).unbind(), decays)]


def _stepwise(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    state, outputs = torch.zeros(B, H, d, d), []
    for step in zip(*(x.split(1, dim=2) for x in (q, k, v, log_decay)), strict=True):
        out, state = recurrent(*step, state)
        outputs.append(out)
    return torch.cat(outputs, dim=2)


def _by_definition(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """The double sum, with decays multiplied up one by one."""
    rows = []
    for n in range(T):
        total, weight = torch.zeros(B, H, d), torch.ones(B, H)
        for m in range(n, -1, -1):
            score = (q[:, :, n] * k[:, :, m]).sum(-1) * weight
            total = total + score[..., None] * v[:, :, m]
            weight = weight * log_decay[:, :, m].exp()
        rows.append(total)
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "form", [parallel, _stepwise, *(lambda *a, c=c: chunked(*a, chunk=c)[0] for c in (1, 3, T, 64))]
)
def test_every_form_is_the_double_sum_with_gradients(form, gated: bool) -> None:
    ours, theirs = _inputs(gated), _inputs(gated)
    got, want = form(*ours), _by_definition(*theirs)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    (got * got.detach().cos()).sum().backward()
    (want * want.detach().cos()).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)


def test_a_chunk_goes_on_behind_a_state() -> None:
    q, k, v, decays = _inputs(gated=True)
    whole, end = chunked(q, k, v, decays)
    first, state = chunked(q[:, :, :4], k[:, :, :4], v[:, :, :4], decays[:, :, :4], chunk=3)
    second, state = chunked(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], decays[:, :, 4:], state, chunk=3)
    torch.testing.assert_close(torch.cat((first, second), dim=2), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state, end, atol=1e-5, rtol=1e-4)


def test_the_papers_normalised_scores_are_equal_after_the_head_norm() -> None:
    """2307.08621, section 2.2: scores divided by the root of the decays' sum and by their own sum, where above 1."""
    q, k, v, decays = _inputs(gated=False)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    fading = (decays[0, :, 0].exp()[:, None, None] ** distance).tril()
    scores = (q @ k.transpose(-1, -2)) * fading / fading.sum(-1, keepdim=True).sqrt()
    normalised = scores / scores.sum(-1, keepdim=True).abs().clamp(min=1) @ v
    norm = Retention(H * d, H, gated=False).norm
    want, *got = (
        norm(x.transpose(1, 2).reshape(B * T, H * d))
        for x in (
            normalised,
            parallel(q, k, v, decays),
            _stepwise(q, k, v, decays),
            chunked(q, k, v, decays, chunk=4)[0],
        )
    )
    for x in got:
        torch.testing.assert_close(x, want, atol=1e-3, rtol=1e-3)


def test_decays_of_heads_and_of_data() -> None:
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    fixed = Retention(32, 4, gated=False).log_decay(x).exp()
    want = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(4)])
    torch.testing.assert_close(fixed, want[None, :, None].expand(1, 4, 3))
    gated = Retention(32, 4, gated=True)
    want = torch.sigmoid(gated.decay(x)).transpose(1, 2) ** (1 / 16)
    torch.testing.assert_close(gated.log_decay(x).exp(), want)


@pytest.mark.parametrize("gate", [-1e4, 1e4])
def test_decays_of_nought_and_of_one_over_many_positions_stay_finite(gate: float) -> None:
    """Ratios of running products, as decays could be written too, would be 0 / 0."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 200, 8).unbind()
    logits = torch.full((1, 1, 200), gate, requires_grad=True)
    out, state = chunked(q, k, v, F.logsigmoid(logits) / 16, chunk=64)
    out.sum().backward()
    assert all(bool(t.isfinite().all()) for t in (out, state, logits.grad))
    if gate < 0:  # nothing is kept: each position reads itself
        torch.testing.assert_close(out, (q * k).sum(-1, keepdim=True) * v)
    else:
        torch.testing.assert_close(state, k.transpose(-1, -2) @ v, atol=1e-4, rtol=1e-4)


def test_bfloat16_weights_and_autocast_are_near_float32() -> None:
    torch.manual_seed(0)
    layer, x, angles = Retention(32, 4, gated=True), torch.randn(2, 100, 32), rotary(torch.arange(100)[None], 8)
    with torch.no_grad():
        want = layer(x, angles)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = layer(x, angles)
        half = layer.bfloat16()(x.bfloat16(), angles)
    for got in (mixed, half):
        assert (got.float() - want).norm() / want.norm() < 0.03


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("length", [1, 5])
def test_padding_neither_adds_to_a_state_nor_fades_it(gated: bool, length: int) -> None:
    torch.manual_seed(0)
    layer, x, angles = Retention(32, 4, gated), torch.randn(2, 5, 32), rotary(torch.arange(5)[None], 8)
    caches = [Retention.new_cache(1, 2, 4, 8, torch.device("cpu")) for _ in range(2)]
    for cache in caches:
        cache.begin(5, torch.tensor([5, 2]))
        layer(x, angles, cache.real(5), cache)
        cache.end()
    after, before = caches
    x, angles = torch.randn(2, length, 32), rotary(torch.arange(length)[None], 8)
    after.begin(length, torch.tensor([1, 0]))
    layer(x, angles, after.real(length), after)
    after, before = after.tensors["state"][0], before.tensors["state"][0]
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])
