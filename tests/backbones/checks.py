"""What every backbone with a past must hold. Dimensions: B rows, T positions, D width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vall_e.backbones.base import Backbone

CPU = torch.device("cpu")


RAGGED = ((7, 1, 4), (1, 1, 1), (1, 1, 1), (3, 3, 3), (1, 1, 1))  # a prompt, steps, several positions, a step


def check_cache(backbone: Backbone, counts: Sequence[Sequence[int]] = RAGGED, order: Sequence[int] = (2, 0, 1)) -> None:
    """Rows that are fed in pieces, padding among them, equal each row alone and whole.

    Args:
        counts: per piece, how many positions each of the B rows gets.
        order: in which the rows stand after the first piece.
    """
    generator, width = torch.Generator().manual_seed(1), backbone.config.dim
    rows = [torch.randn(1, sum(c[b] for c in counts), width, generator=generator) for b in range(len(order))]
    with torch.no_grad():
        whole = [backbone(x, torch.arange(x.shape[1])[None])[0] for x in rows]
        cache = backbone.new_cache(len(rows), 2 * max(x.shape[1] for x in rows), torch.float32, CPU)
        place, at = list(range(len(rows))), [0] * len(rows)
        for piece, real in enumerate(counts):
            length = max(real)
            x = 30 * torch.randn(len(rows), length, width, generator=generator)  # what stays of it is padding, and loud
            for slot, b in enumerate(place):
                x[slot, : real[b]] = rows[b][0, at[b] : at[b] + real[b]]
            positions = cache.positions(length)
            cache.begin(length, torch.tensor([real[b] for b in place]))
            out = backbone(x, positions, None, cache)
            cache.end()
            for slot, b in enumerate(place):
                want = whole[b][at[b] : at[b] + real[b]]
                torch.testing.assert_close(out[slot, : real[b]], want, atol=2e-5, rtol=2e-4)
                at[b] += real[b]
            if piece == 0:
                cache, place = cache.select(torch.tensor(order)), list(order)


def check_causal(backbone: Backbone) -> None:
    """A position depends on itself, on all before it, and on nothing behind it."""
    grad = influence(backbone, 3)
    assert grad[4:].max() == 0
    assert grad[:4].min() > 0


def influence(backbone: Backbone, at: int, length: int = 7, layer: int = -1) -> Tensor:
    """Greatest absolute gradient [T] of what one position has after a layer, by input position; causal rows."""
    x = torch.randn(1, length, backbone.config.dim, generator=torch.Generator().manual_seed(1)).requires_grad_()
    list(backbone.states(x, torch.arange(length)[None]))[layer][0, at].sum().backward()
    return x.grad[0].abs().amax(-1)


def check_prefill(backbone: Backbone) -> None:
    """Each row's last hidden state as in the whole forward; a step after it too."""
    lengths, width = torch.tensor([6, 2, 4]), backbone.config.dim
    x = torch.randn(3, 7, width, generator=torch.Generator().manual_seed(1))
    rows, positions = torch.arange(3), torch.arange(7).expand(3, 7)
    with torch.no_grad():
        whole = backbone(x, positions)
        cache = backbone.new_cache(3, 8, torch.float32, CPU)
        cache.begin(6, lengths)
        last = backbone.prefill(x[:, :6], positions[:, :6], None, cache)
        cache.end()
        torch.testing.assert_close(last[:, 0], whole[rows, lengths - 1], atol=1e-5, rtol=1e-4)
        at = cache.positions(1)
        cache.begin(1)
        step = backbone(x[rows, lengths][:, None], at, None, cache)
        torch.testing.assert_close(step[:, 0], whole[rows, lengths], atol=1e-5, rtol=1e-4)
