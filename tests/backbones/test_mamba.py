"""Mamba and Mamba-2: transformers' own forward, and ours step by step, are the same function."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import Mamba2Config, Mamba2Model, MambaConfig, MambaModel

from tests.backbones.checks import CPU, check_cache, check_causal
from tests.tiny import build, model_config, train_config
from vall_e.backbones.base import Backbone, build_backbone
from vall_e.backbones.mamba2 import CHUNK
from vall_e.nn.masks import Mask
from vall_e.nn.ssm import convolve, recur
from vall_e.training.optimizers import parameter_groups

SIZES = {"state": 6, "conv": 4, "expand": 2, "head_dim": 16}
HF = {"mamba": (MambaConfig, MambaModel), "mamba2": (Mamba2Config, Mamba2Model)}


@pytest.fixture(params=["mamba", "mamba2"])
def ours(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    backbone = build_backbone(model_config(backbone=request.param, mamba=SIZES)).eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.dim() == 1 or name.endswith("conv1d.weight"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return backbone


def test_equals_transformers(ours: Backbone) -> None:
    """Longer than a chunk of Mamba-2's scan; ours with a cache, theirs in one piece and with other chunks."""
    config, model = HF[ours.config.backbone]
    heads = {"head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 256} if config is Mamba2Config else {}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 6, "layer_norm_epsilon": 1e-6, "vocab_size": 1}
    theirs = model(config(**sizes, **heads)).eval()
    theirs.norm_f.load_state_dict(ours.norm.state_dict())
    for mine, other in zip(ours.blocks, theirs.layers, strict=True):
        other.norm.load_state_dict(mine.norm.state_dict())
        other.mixer.load_state_dict(mine.mixer.state_dict())
    length = CHUNK + 5
    x, positions = torch.randn(2, length, 32), torch.arange(length).expand(2, length)
    cache = ours.new_cache(2, length, torch.float32, CPU)
    cache.begin(length)
    with torch.no_grad():
        want = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
        torch.testing.assert_close(ours(x, positions), want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours(x, positions, None, cache), want, atol=1e-5, rtol=1e-4)


def test_causal_and_steps_equal_the_scan(ours: Backbone) -> None:
    check_causal(ours)
    check_cache(ours)


def test_padding_leaves_no_trace_and_memory_does_not_grow(ours: Backbone) -> None:
    """States after a ragged prefill are those of each row alone, also of a row that brings nothing."""
    lengths, x = torch.tensor([6, 2, 0]), torch.randn(3, 6, 32)
    cache = ours.new_cache(3, 6, torch.float32, CPU)
    cache.begin(6, lengths)
    before = cache.bytes
    with torch.no_grad():
        ours(x, cache.positions(6), None, cache)
        cache.end()
        assert cache.bytes == before == ours.new_cache(3, 6_000, torch.float32, CPU).bytes
        for row, length in enumerate(lengths.tolist()):
            alone = ours.new_cache(1, 6, torch.float32, CPU)
            if length:
                alone.begin(length)
                ours(x[row : row + 1, :length], alone.positions(length), None, alone)
            for name, group in cache.tensors.items():
                for mine, want in zip(group, alone.tensors[name], strict=True):
                    torch.testing.assert_close(mine[row], want[0], atol=1e-5, rtol=1e-4)


def test_the_recurrence_and_the_convolution_by_hand() -> None:
    torch.manual_seed(0)
    decay, drive, read = torch.rand(1, 3, 2, 4), torch.randn(1, 3, 2, 4), torch.randn(1, 3, 1, 4)
    out, last = recur(decay, drive, read, torch.ones(1, 2, 4))
    h = torch.ones(2, 4)
    for t in range(3):
        h = decay[0, t] * h + drive[0, t]
        torch.testing.assert_close(out[0, t], h @ read[0, t, 0])
    torch.testing.assert_close(last[0], h)
    conv, x = nn.Conv1d(5, 5, 3, groups=5, padding=2), torch.randn(1, 7, 5)
    want = conv(x.transpose(1, 2))[..., :7].transpose(1, 2)
    first, past = convolve(x[:, :5], torch.zeros(1, 5, 2), torch.tensor([4]), conv)
    second, past = convolve(x[:, 4:], past, torch.tensor([3]), conv)
    torch.testing.assert_close(torch.cat((first[:, :4], second), dim=1), want)
    torch.testing.assert_close(past[0], x[0, 5:].T)


def test_rates_start_slow_and_stay_out_of_muon(ours: Backbone) -> None:
    """Steps between 0.001 and 0.1 at the start (2312.00752, section 3.6); a table of rates is no map."""
    model = build(backbone=ours.config.backbone, mamba=SIZES)
    for block in model.backbone.blocks:
        bias = block.mixer.dt_proj.bias if hasattr(block.mixer, "dt_proj") else block.mixer.dt_bias
        step = nn.functional.softplus(bias)
        assert step.min() >= 0.99e-3 and step.max() <= 0.101
    rates = {id(p) for name, p in model.named_parameters() if name.endswith("A_log")}
    for group in parameter_groups(model, train_config(optimizer="muon")):
        if group.get("use_muon"):
            assert group["params"] and not rates & {id(p) for p in group["params"]}


def test_what_it_cannot_do_is_refused(ours: Backbone) -> None:
    name, x, positions = ours.config.backbone, torch.randn(1, 4, 32), torch.arange(4)[None]
    with pytest.raises(ValueError, match="sees the past only"):
        ours(x, positions, Mask(torch.tensor([4]), torch.tensor([True])))
    with pytest.raises(ValidationError, match="parallel passes"):
        model_config("ar+nar", backbone=name, mamba=SIZES)
    with pytest.raises(ValidationError, match="no meaning for backbone llama"):
        model_config(mamba=SIZES)
    if name == "mamba2":
        with pytest.raises(ValidationError, match=r"no multiple of model\.mamba\.head_dim"):
            model_config(backbone=name, mamba=SIZES | {"head_dim": 48})
