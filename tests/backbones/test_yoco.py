"""YOCO: the same in pieces as whole, prompts that skip the cross-decoder, a past that does not grow with depth."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tests.backbones.checks import CPU, check_cache, check_causal, check_prefill, influence
from tests.tiny import model_config
from vall_e.backbones.base import Backbone, build_backbone
from vall_e.nn.masks import Mask

WINDOW = 4


def _build(self_decoder: str = "sliding", layers: int = 4) -> Backbone:
    torch.manual_seed(0)
    yoco = {"self_decoder": self_decoder, "window": WINDOW}
    return build_backbone(model_config(backbone="yoco", layers=layers, yoco=yoco)).eval()


@pytest.fixture(params=["retention", "sliding"])
def yoco(request: pytest.FixtureRequest) -> Backbone:
    return _build(request.param)


def test_rows_in_pieces_equal_rows_whole(yoco: Backbone) -> None:
    check_cache(yoco, [(7, 3, 2), (1, 1, 1), (1, 1, 1), (3, 0, 9), (2, 6, 1), (1, 1, 1)], order=(2, 0, 1))


def test_causal_by_gradient(yoco: Backbone) -> None:
    check_causal(yoco)


def test_prompts_need_the_cross_decoder_at_their_last_position_only(yoco: Backbone) -> None:
    lengths = []
    for block in yoco.blocks:
        block.register_forward_hook(lambda _, inputs, out: lengths.append(out.shape[1]))
    check_prefill(yoco)  # whole, prompt, step
    assert lengths == [7, 7, 7, 7, 6, 6, 1, 1, 1, 1, 1, 1]


def test_no_gradient_beyond_the_window() -> None:
    """Each self-decoder layer reaches ``window - 1`` further back, the cross-decoder everywhere."""
    backbone = _build()
    for layer, reach in ((0, WINDOW - 1), (1, 2 * (WINDOW - 1)), (2, 11)):
        grad = influence(backbone, at=11, length=12, layer=layer)
        assert grad[: 11 - reach].sum() == 0
        assert grad[11 - reach :].min() > 0


@pytest.mark.parametrize("self_decoder", ["retention", "sliding"])
def test_keys_and_values_of_the_past_do_not_grow_with_depth(self_decoder: str) -> None:
    rows, per_position, found = 3, 2 * 2 * 8 * 4, []  # keys and values, groups, d, bytes
    for layers in (2, 4, 8):
        backbone = _build(self_decoder, layers)
        short, long = (backbone.new_cache(rows, size, torch.float32, CPU).bytes for size in (10, 1010))
        assert long - short == rows * 1000 * per_position
        constant = short - rows * 10 * per_position
        found.append(constant / (layers // 2))
    layer = 4 * 8 * 8 * 4 if self_decoder == "retention" else WINDOW * per_position
    assert set(found) == {rows * layer}


def test_a_ring_keeps_its_size_in_use() -> None:
    backbone = _build()
    cache = backbone.new_cache(1, 40, torch.float32, CPU)
    size = cache.bytes
    with torch.no_grad():
        for length in (9, 1, 5):
            cache.begin(length)
            backbone(torch.randn(1, length, 32), cache.positions(length), None, cache)
            cache.end()
    assert cache.bytes == size


def test_parallel_rows_see_everything_through_a_sliding_self_decoder() -> None:
    backbone, lengths = _build(), torch.tensor([9, 7])
    x, positions = torch.randn(2, 9, 32, requires_grad=True), torch.arange(9).expand(2, 9)
    backbone(x, positions, Mask(lengths, torch.tensor([True, False])))[:, 2].sum().backward()
    assert x.grad[0].abs().amax(-1).min() > 0
    assert x.grad[1, 3:].abs().max() == 0
    first = next(iter(backbone.states(x, positions, Mask(lengths, torch.tensor([True, False])))))
    x.grad = None
    first[0, 8].sum().backward()
    assert x.grad[0, 0].abs().max() > 0  # no window


def test_what_cannot_work_is_refused_when_a_configuration_loads() -> None:
    with pytest.raises(ValidationError, match="layers 3 is odd"):
        model_config(backbone="yoco", layers=3)
    with pytest.raises(ValidationError, match=r"backbone yoco sees the past only.*bidirectional: flip"):
        model_config("ar+nar", backbone="yoco")
    assert model_config("ar+nar", backbone="yoco", yoco={"self_decoder": "sliding"}).capabilities.bidirectional
    mask = Mask(torch.tensor([4]), torch.tensor([True]))
    with pytest.raises(ValueError, match="yoco sees the past only"):
        _build("retention")(torch.randn(1, 4, 32), torch.arange(4)[None], mask)
