"""RetNet: causal, the same in pieces as whole, a past of constant size."""

from __future__ import annotations

import pytest
import torch

from tests.backbones.checks import CPU, check_cache, check_causal, check_prefill
from tests.tiny import model_config
from vall_e.backbones.base import Backbone, build_backbone
from vall_e.nn.masks import Mask


@pytest.fixture
def retnet() -> Backbone:
    torch.manual_seed(0)
    return build_backbone(model_config(backbone="retnet")).eval()


def test_rows_in_pieces_equal_rows_whole(retnet: Backbone) -> None:
    check_cache(retnet, [(7, 3, 70), (1, 1, 1), (1, 1, 1), (3, 0, 65), (1, 1, 1)], order=(2, 0, 1))


def test_causal_by_gradient(retnet: Backbone) -> None:
    check_causal(retnet)


def test_prefill_is_the_forward_at_the_last_position(retnet: Backbone) -> None:
    check_prefill(retnet)


def test_the_past_has_one_size(retnet: Backbone) -> None:
    caches = [retnet.new_cache(3, size, torch.float32, CPU) for size in (10, 1000)]
    assert {cache.bytes for cache in caches} == {2 * 3 * 4 * 8 * 8 * 4}  # layers, rows, heads, d, d, bytes


def test_a_mask_is_refused(retnet: Backbone) -> None:
    mask = Mask(torch.tensor([4]), torch.tensor([True]))
    with pytest.raises(ValueError, match="retnet sees the past only"):
        retnet(torch.randn(1, 4, 32), torch.arange(4)[None], mask)
