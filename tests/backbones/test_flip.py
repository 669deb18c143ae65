"""Both directions from a backbone that sees the past only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.tiny import build, model_config, sample
from vall_e.backbones.flip import flip
from vall_e.family import BACKBONES
from vall_e.models.packing import pack
from vall_e.models.vall_e import VallE
from vall_e.nn.masks import Mask

ONE_WAY = sorted(name for name in BACKBONES if not model_config(backbone=name).capabilities.bidirectional)


@pytest.fixture(params=ONE_WAY)
def model(request: pytest.FixtureRequest) -> VallE:
    return build("ar+nar", backbone=request.param, bidirectional="flip")


def test_rows_are_read_backwards_within_their_own_length() -> None:
    assert flip(torch.tensor([3, 5, 1]), 5).tolist() == [[2, 1, 0, 3, 4], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4]]


def test_parallel_rows_are_the_sum_of_both_runs(model: VallE) -> None:
    backbone = model.backbone
    x, positions = torch.randn(2, 6, 32), torch.tensor([0, 1, 2, 0, 1, 2]).expand(2, 6)
    mask = Mask(torch.tensor([6, 4]), torch.tensor([False, True]))
    with torch.no_grad():
        got = backbone(x, positions, mask)
        row, place = x[1:, :4], positions[1:, :4]
        there = list(backbone.inner.states(row, place))[-1]
        back = list(backbone.inner.states(row.flip(1), place.flip(1)))[-1]
        torch.testing.assert_close(got[1, :4], backbone.norm(there + back.flip(1))[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got[0], backbone.inner(x, positions)[0], atol=1e-5, rtol=1e-4)


def test_later_positions_reach_parallel_rows_and_never_causal_ones(model: VallE) -> None:
    rng = np.random.default_rng(0)
    packed = pack([sample(rng, level=level) for level in (0, 1)], model.layout)
    x = model.embeddings(packed).detach().requires_grad_()
    at = int(packed.response[0]) + 2
    model.backbone(x, packed.position, packed.mask())[:, at].sum().backward()
    causal, parallel = x.grad.abs().amax(-1)
    assert causal[: at + 1].min() > 0 and causal[at + 1 :].max() == 0
    assert parallel.min() > 0


def test_a_row_in_a_mixed_batch_equals_the_row_alone(model: VallE) -> None:
    rng = np.random.default_rng(0)
    samples = [sample(rng, 3 + i, 2 * i, 5 + i, level) for i, level in enumerate((1, 0, 2))]
    with torch.no_grad():
        together = model.hidden(pack(samples, model.layout))
        for i, s in enumerate(samples):
            alone = model.hidden(pack([s], model.layout))[0]
            torch.testing.assert_close(together[i, : model.layout.length(s)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backbone", ONE_WAY)
def test_parallel_passes_need_flip(backbone: str) -> None:
    with pytest.raises(ValidationError, match=f"backbone {backbone} sees the past only: set model.bidirectional: flip"):
        model_config("ar+nar", backbone=backbone)
    assert model_config("ar+nar", backbone=backbone, bidirectional="flip").capabilities.bidirectional


def test_flip_is_refused_where_it_would_hide_a_backbones_own_way() -> None:
    with pytest.raises(ValidationError, match="this one sees both ways"):
        model_config(bidirectional="flip")


def test_parallel_rows_leave_no_past(model: VallE) -> None:
    x, positions = torch.randn(1, 4, 32), torch.arange(4)[None]
    cache = model.backbone.new_cache(1, 8, torch.float32, torch.device("cpu"))
    cache.begin(4)
    with pytest.raises(ValueError, match="only causal rows"):
        model.backbone.prefill(x, positions, Mask(torch.tensor([4]), torch.tensor([True])), cache)
