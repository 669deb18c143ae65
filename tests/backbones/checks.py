"""What every backbone has to keep to."""

from __future__ import annotations

import torch

from vall_e.backbones.base import Backbone

CPU = torch.device("cpu")


def check_causal(backbone: Backbone, dim: int = 32) -> None:
    """By gradients: a position depends on itself and all before it, and on nothing behind."""
    x = torch.randn(1, 6, dim, requires_grad=True)
    backbone(x, torch.arange(6).expand(1, 6))[0, 2].sum().backward()
    assert x.grad[0, 3:].abs().max() == 0
    assert x.grad[0, :3].abs().amax(-1).min() > 0


@torch.no_grad()
def check_cache(backbone: Backbone, steps: tuple[int, ...] = (1, 1, 3, 1), dim: int = 32) -> None:
    """A ragged prefill and then forwards of ``steps`` positions equal the whole of each row, computed alone without a
    cache; what is put into the padding is noise. Half-way the rows are picked in another order, one of them twice."""
    first = torch.tensor([7, 1, 4])
    x, rows = torch.randn(3, 7 + sum(steps), dim), torch.arange(3)
    whole = [
        backbone(x[i : i + 1, : n + sum(steps)], torch.arange(n + sum(steps))[None])[0] for i, n in enumerate(first)
    ]
    cache = backbone.new_cache(3, x.shape[1], torch.float32, CPU)
    padded = torch.where(torch.arange(7)[None, :, None] < first[:, None, None], x[:, :7], 1e2 * torch.randn(3, 7, dim))
    positions = cache.positions(7)
    cache.begin(7, first)
    got = backbone(padded, positions, None, cache)
    cache.end()
    for i, n in enumerate(first):
        torch.testing.assert_close(got[i, :n], whole[i][:n], atol=1e-5, rtol=1e-4)
    for step, count in enumerate(steps):
        if step == len(steps) // 2:
            picked = torch.tensor([2, 0, 2, 1])
            cache, rows = cache.select(picked), rows[picked]
        at = cache.slots(count)
        positions = cache.positions(count)
        cache.begin(count)
        got = backbone(x[rows[:, None], at], positions, None, cache)
        cache.end()
        for i, row in enumerate(rows):
            torch.testing.assert_close(got[i], whole[row][at[i]], atol=1e-5, rtol=1e-4)
