"""Masks against loops that ask of each pair of positions whether the one may see the other."""

from __future__ import annotations

import pytest
import torch

from vall_e.nn.cache import KVCache
from vall_e.nn.masks import Mask, causal, visible

LENGTH = 6
CPU = torch.device("cpu")


def _oracle(mask: Mask, window: int | None) -> torch.Tensor:
    rows = len(mask.lengths)
    out = torch.zeros(rows, 1, LENGTH, LENGTH, dtype=torch.bool)
    for b in range(rows):
        for query in range(LENGTH):
            for key in range(LENGTH):
                if mask.parallel[b]:
                    seen = key < mask.lengths[b]
                else:
                    seen = key <= query and (window is None or query - key < window)
                if mask.segment is not None:
                    seen = (seen and mask.segment[b, query] == mask.segment[b, key]) or query == key
                out[b, 0, query, key] = bool(seen)
    return out


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("parallel", [(False, False), (True, True), (False, True)], ids=["causal", "full", "mixed"])
def test_dense_equals_brute_force_and_everyone_sees_something(parallel, segmented, window) -> None:
    torch.manual_seed(0)
    segment = torch.randint(3, (2, LENGTH)) if segmented else None
    mask = Mask(torch.tensor([LENGTH, 3]), torch.tensor(parallel), segment)
    got = mask.dense(LENGTH, window)
    assert torch.equal(got, _oracle(mask, window))
    assert got.any(-1).all()  # a softmax over nothing is NaN, and padding's NaN would reach the rest of a row
    assert torch.equal(visible(mask, LENGTH, None, window, CPU), got)


@pytest.mark.parametrize("window", [None, 1, 3, LENGTH, LENGTH + 4])
def test_causal_and_sliding_equal_brute_force(window: int | None) -> None:
    reach = LENGTH if window is None else window
    want = torch.tensor([[0 <= q - k < reach for k in range(LENGTH)] for q in range(LENGTH)])
    assert torch.equal(causal(LENGTH, LENGTH, window), want)
    assert torch.equal(causal(2, LENGTH, window), want[-2:])
    plain = visible(None, LENGTH, None, window, CPU)
    assert plain is None if reach >= LENGTH else torch.equal(plain[0, 0], want)


@pytest.mark.parametrize("window", [None, 2])
def test_rows_with_a_past_see_their_own_past_only(window: int | None) -> None:
    cache = KVCache(1, 2, 1, 9, 2, torch.float32, CPU)
    cache.begin(4, torch.tensor([4, 2]))
    cache.end()
    got = visible(None, 3, cache, window, CPU)
    want = torch.zeros(2, 1, 3, 7, dtype=torch.bool)
    for row, past in enumerate((4, 2)):
        for new in range(3):
            for key in range(7):
                want[row, 0, new, key] = 0 <= past + new - key < (window or 9)
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match="rows with a past are causal"):
        visible(Mask(torch.tensor([3, 3]), torch.tensor([True, False])), 3, cache, None, CPU)
