"""Our Llama against transformers' with the same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from tests.backbones.checks import check_cache, check_causal, check_prefill
from tests.tiny import model_config
from vall_e.backbones.base import build_backbone
from vall_e.backbones.fused import FusedBlock
from vall_e.backbones.llama import Llama
from vall_e.family import ModelConfig
from vall_e.nn.cache import KVCache
from vall_e.nn.cpu import FEW, block_step
from vall_e.nn.masks import Mask
from vall_e.nn.unpadded import Unpadded


def hf_sizes(config: ModelConfig) -> dict:
    """The same sizes for a transformers configuration."""
    return {
        "hidden_size": config.dim,
        "intermediate_size": config.ff_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": 1e-6,
        "vocab_size": 3,
    }


def copy_attention(ours: Llama, theirs: nn.Module) -> None:
    """Norms and attention of all layers, as transformers names them."""
    theirs.norm.load_state_dict(ours.norm.state_dict())
    for mine, other in zip(ours.blocks, theirs.layers, strict=True):
        other.input_layernorm.load_state_dict(mine.attention_norm.state_dict())
        other.post_attention_layernorm.load_state_dict(mine.feedforward_norm.state_dict())
        for name in ("q", "k", "v", "o"):
            getattr(other.self_attn, f"{name}_proj").load_state_dict(getattr(mine.attention, name).state_dict())


def copy_weights(ours: Llama, theirs: LlamaModel) -> None:
    copy_attention(ours, theirs)
    for mine, other in zip(ours.blocks, theirs.layers, strict=True):
        for name in ("gate", "up", "down"):
            getattr(other.mlp, f"{name}_proj").load_state_dict(getattr(mine.feedforward, name).state_dict())


@pytest.fixture
def ours() -> Llama:
    torch.manual_seed(0)
    return Llama(model_config()).eval()


def test_equals_transformers(ours: Llama) -> None:
    theirs = LlamaModel(LlamaConfig(**hf_sizes(ours.config), rope_theta=ours.config.rope.base)).eval()
    copy_weights(ours, theirs)
    x, positions = torch.randn(2, 9, 32), torch.arange(9).expand(2, 9)
    with torch.no_grad():
        want = theirs(inputs_embeds=x, position_ids=positions).last_hidden_state
        torch.testing.assert_close(ours(x, positions), want, atol=1e-5, rtol=1e-4)


def test_causal_by_gradient_and_full_with_a_mask(ours: Llama) -> None:
    check_causal(ours)
    x, positions = torch.randn(1, 6, 32, requires_grad=True), torch.arange(6).expand(1, 6)
    ours(x, positions, Mask(torch.tensor([6]), torch.tensor([True])))[0, 2].sum().backward()
    assert x.grad[0].abs().amax(-1).min() > 0


def test_cached_equals_uncached(ours: Llama) -> None:
    check_cache(ours)


@pytest.mark.parametrize("backbone", ["llama", "mixtral"])
def test_fused_layers_are_prefilled_without_padding(backbone: str) -> None:
    torch.manual_seed(0)
    fused = build_backbone(model_config(backbone=backbone)).eval()
    fused.fuse()
    seen: list[int] = []
    fused.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    check_prefill(fused)
    assert seen == [3 * 7, 6 + 2 + 4, 3]  # whole, prompt, step


@torch.inference_mode()
def test_steps_read_what_each_row_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long row beside short ones costs them nothing; prompts are for torch's own attention."""
    torch.manual_seed(0)
    fused = build_backbone(model_config()).eval()
    fused.fuse()
    seen: list[list[int]] = []

    def watched(*given: Any) -> Tensor:
        seen.append(given[-1].tolist())
        return block_step(*given)

    monkeypatch.setattr("vall_e.backbones.fused.block_step", watched)
    check_cache(fused, ((7, 1, 4), (1, 1, 1), (3, 3, 3)))
    assert seen == fused.config.layers * [[5, 8, 2]]


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3, FEW, FEW + 1])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_step_in_one_call_is_the_step_in_many(rows: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fused = build_backbone(model_config(dim=48, heads=4, kv_heads=kv_heads, ff_dim=88)).eval()
    fused.fuse()
    calls: list[int] = []
    monkeypatch.setattr("vall_e.backbones.fused.block_step", lambda *given: calls.append(1) or block_step(*given))
    prompt, step = torch.randn(rows, 5, 48), torch.randn(rows, 1, 48)

    def run() -> tuple[Tensor, Tensor]:
        cache = fused.new_cache(rows, 9, torch.float32, torch.device("cpu"))
        for x, counts in ((prompt, torch.arange(rows) % 5 + 1), (step, None)):
            positions = cache.positions(x.shape[1])
            cache.begin(x.shape[1], counts)
            out = fused(x, positions, None, cache)
            cache.end()
        return out, cache.select(torch.arange(rows)).tensors["keys"][-1][:, :, :6]

    found = run()
    assert len(calls) == (fused.config.layers if rows <= FEW else 0)
    monkeypatch.setattr(FusedBlock, "steps", lambda *_: False)
    torch.testing.assert_close(found, run(), atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_steps_follow_weights_that_are_changed_copied_or_moved() -> None:
    def step(block: FusedBlock) -> Tensor:
        cache = KVCache(1, 1, 2, 4, 16, torch.float32, torch.device("cpu"))
        cache.begin(1)
        return block(torch.ones(1, 1, 32), (torch.ones(1, 1, 1, 16), torch.zeros(1, 1, 1, 16)), None, cache)

    torch.manual_seed(0)
    backbone = build_backbone(model_config(dim=32, heads=2, kv_heads=2)).eval()
    backbone.fuse()
    block = backbone.blocks[0]
    first, copied = step(block), copy.deepcopy(block)
    block.o.transposed.mul_(2)
    changed = step(block)
    assert not changed.equal(first)
    assert step(copied).equal(first)
    block.double().float().o.transposed.div_(2)
    torch.testing.assert_close(step(block), first)


def test_rows_without_padding_and_back() -> None:
    padded = torch.arange(24.0).view(3, 4, 2)
    rows = Unpadded.of(torch.arange(4) < torch.tensor([2, 4, 1])[:, None])
    joined = rows.collect(padded)
    assert joined[:, 0].tolist() == [0, 2, 8, 10, 12, 14, 16]
    assert rows.first.tolist() == [0, 2, 6]
    spread = rows.spread(joined)
    assert spread[0, 2:].eq(0).all() and spread[2, 1:].eq(0).all()
    torch.testing.assert_close(rows.collect(spread), joined)
