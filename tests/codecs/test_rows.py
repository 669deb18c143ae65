"""Parts of a batch: as large as the limit allows, evenly cut, in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vall_e.codecs import rows
from vall_e.codecs.rows import by_rows


@pytest.mark.parametrize(
    ("batch", "values", "sizes"),
    [(1, 5, [1]), (4, 25, [4]), (9, 25, [3, 3, 3]), (8, 25, [4, 4]), (5, 100, [1] * 5), (3, 1e9, [1] * 3), (2, 0, [2])],
)
def test_parts_fit_the_cache_and_are_joined_in_order(
    batch: int, values: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "CACHED", 100)
    seen: list[int] = []

    def work(part: Tensor) -> Tensor:
        seen.append(len(part))
        return part * 2

    x = torch.arange(batch * 3.0).view(batch, 3)
    assert torch.equal(by_rows(work, x, values), 2 * x)
    assert seen == sizes


def test_on_a_gpu_a_batch_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CACHED", 1)
    x = torch.empty(7, 3, device="meta")
    seen: list[int] = []

    def work(part: Tensor) -> Tensor:
        seen.append(len(part))
        return part

    by_rows(work, x, 100)
    assert seen == [7]
