"""Rotary positions, plain and stretched, against transformers', also while the length grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import DynamicCache, LlamaModel
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding

from tests.backbones.test_llama import copy_weights, hf_sizes
from tests.tiny import build, model_config, sample
from vall_e.backbones.llama import Llama
from vall_e.family import RopeConfig
from vall_e.models.packing import pack
from vall_e.nn.cache import Cache
from vall_e.nn.rope import rotary

TRAINED = 8
ROPES = [
    RopeConfig(base=500.0, trained_length=TRAINED),
    RopeConfig(base=500.0, scaling="linear", factor=2.5, trained_length=TRAINED),
    RopeConfig(base=500.0, scaling="dynamic", factor=2.0, trained_length=TRAINED),
]
every_rope = pytest.mark.parametrize("rope", ROPES, ids=[rope.scaling for rope in ROPES])


def hf_rope(rope: RopeConfig) -> dict:
    """The same for a transformers configuration."""
    scaling = None if rope.scaling == "none" else {"rope_type": rope.scaling, "factor": rope.factor}
    return {"rope_theta": rope.base, "rope_scaling": scaling, "max_position_embeddings": rope.trained_length}


def oracle(rope: RopeConfig) -> LlamaRotaryEmbedding:
    return LlamaRotaryEmbedding(LlamaConfig(hidden_size=32, num_attention_heads=4, **hf_rope(rope)))


@every_rope
@pytest.mark.parametrize("length", [TRAINED - 3, TRAINED, TRAINED + 1, 5 * TRAINED])
def test_equals_transformers_below_and_beyond_the_trained_length(rope: RopeConfig, length: int) -> None:
    positions = torch.arange(length).expand(2, length)
    for got, want in zip(rotary(positions, 8, rope), oracle(rope)(torch.zeros(1), positions), strict=True):
        torch.testing.assert_close(got[:, 0], want)


def test_scaling_changes_what_it_should() -> None:
    """Linear: position p at factor f is p / f. Dynamic: nothing up to the trained length, then the base rises."""
    plain, linear, dynamic = ROPES
    even = torch.arange(0, 25, 5)[None]
    torch.testing.assert_close(rotary(even, 8, linear)[0], rotary(even * 2 // 5, 8, plain)[0])
    inside, beyond = torch.arange(TRAINED)[None], torch.arange(TRAINED + 4)[None]
    torch.testing.assert_close(rotary(inside, 8, dynamic)[0], rotary(inside, 8, plain)[0])
    base = 500.0 * (2.0 * 12 / TRAINED - 1.0) ** (8 / 6)
    torch.testing.assert_close(rotary(beyond, 8, dynamic)[0], rotary(beyond, 8, RopeConfig(base=base))[0])


@every_rope
def test_equals_transformers_while_the_length_grows(rope: RopeConfig) -> None:
    theirs, cache = oracle(rope), Cache(2, torch.device("cpu"))
    for count in (5, *[1] * 10, 4, 1):
        positions = cache.positions(count)
        cache.begin(count)
        got = rotary(positions, 8, rope, cache.reach(positions))
        cache.end()
        for mine, want in zip(got, theirs(torch.zeros(1), positions), strict=True):
            torch.testing.assert_close(mine[:, 0], want)


@every_rope
def test_decoding_equals_transformers_step_by_step(rope: RopeConfig) -> None:
    """Keys in the cache stay turned by the base of their time, there and here."""
    torch.manual_seed(0)
    config = model_config(rope=rope)
    ours, theirs = Llama(config).eval(), LlamaModel(LlamaConfig(**hf_sizes(config) | hf_rope(rope))).eval()
    copy_weights(ours, theirs)
    x, at = torch.randn(2, 20, 32), 0
    past, cache = DynamicCache(), ours.new_cache(2, 20, torch.float32, torch.device("cpu"))
    for count in (5, *[1] * 15):
        positions, new = cache.positions(count), x[:, at : at + count]
        cache.begin(count)
        with torch.no_grad():
            got = ours(new, positions, None, cache)
            want = theirs(inputs_embeds=new, position_ids=positions, past_key_values=past, use_cache=True)
        cache.end()
        torch.testing.assert_close(got, want.last_hidden_state, atol=1e-5, rtol=1e-4)
        at += count


def test_a_row_is_as_long_as_itself_and_not_as_its_batch() -> None:
    rope, first = ROPES[2], torch.tensor([12, 3, 9])
    cache = Cache(3, torch.device("cpu"))
    positions = cache.positions(12)
    cache.begin(12, first)
    cos, _ = rotary(positions, 8, rope, cache.reach(positions))
    cache.end()
    cache = cache.select(torch.tensor([1, 2]))
    for row, length in enumerate(first):
        alone, _ = rotary(torch.arange(length)[None], 8, rope)
        torch.testing.assert_close(cos[row, 0, :length], alone[0, 0])
    positions = cache.positions(1)
    cache.begin(1)
    assert cache.reach(positions).tolist() == [4, 10]


@pytest.mark.parametrize("positions", ["segment", "sequence"])
def test_a_row_of_a_voice_model_beyond_the_trained_length_equals_the_row_alone(positions: str) -> None:
    model = build(positions=positions, rope=RopeConfig(scaling="dynamic", factor=3.0, trained_length=4))
    rng = np.random.default_rng(0)
    samples = [sample(rng, 3 + i, 2 * i, 5 + 6 * i) for i in range(3)]
    with torch.no_grad():
        together = model.hidden(pack(samples, model.layout, multiple=16))
        for i, s in enumerate(samples):
            alone = model.hidden(pack([s], model.layout))[0]
            torch.testing.assert_close(together[i, : model.layout.length(s)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rope": {"factor": 2.0}}, "belongs to model.rope.scaling"),
        ({"rope": {"scaling": "dynamic"}, "dim": 8}, "wider than 2"),
        ({"rope": {"base": 500.0}, "backbone": "transformer"}, "no meaning for backbone transformer"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        model_config(**changes)
