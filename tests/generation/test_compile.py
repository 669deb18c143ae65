"""Steps over a cache of static shapes: compiled once for each number of rows, and saying the same."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.generation.oracle import make_prompts
from tests.tiny import build
from vall_e.decoding import SamplingConfig, SamplingParams
from vall_e.generation.ar import decode
from vall_e.generation.engine import Engine
from vall_e.models.formats import use_weights

DRAWN = SamplingConfig(ar=SamplingParams(temperature=1.0), guidance=0.5, candidates=2)


def _same(one: list, other: list) -> None:
    for mine, plain in zip(one, other, strict=True):
        for a, b in zip(mine, plain, strict=True):
            np.testing.assert_array_equal(a.codes, b.codes)
            assert a.finished == b.finished
            assert a.score == pytest.approx(b.score, abs=1e-4)


@pytest.mark.parametrize("backbone", ["llama", "transformer"])
def test_a_graph_for_each_number_of_rows_and_the_same_speech(backbone: str) -> None:
    torch._dynamo.reset()
    model, compiled = (build(backbone=backbone) for _ in range(2))
    counter = CompileCounter()
    use_weights(compiled).backbone.compile_steps(counter)
    prompts, limits = make_prompts(), [9, 14, 3]
    plain = decode(model, prompts, DRAWN, [1, 2, 3], limits)
    for _ in range(2):  # the second time nothing is compiled
        _same(decode(compiled, prompts, DRAWN, [1, 2, 3], limits), plain)
        assert 0 < counter.frame_count <= 3  # twelve rows with their twins, then half of them, then a quarter


def test_rows_join_a_compiled_batch() -> None:
    torch._dynamo.reset()
    model, compiled = (build() for _ in range(2))
    compiled.backbone.compile_steps("eager")
    prompts = make_prompts()
    engine = Engine(compiled, DRAWN)
    tickets = engine.add(prompts[:1], [3], [9])
    engine.step()
    tickets += engine.add(prompts[1:], [4, 5], [14, 2])
    while engine.step():
        pass
    _same([t.candidates() for t in tickets], decode(model, prompts, DRAWN, [3, 4, 5], [9, 14, 2]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_by_inductor_it_says_the_same() -> None:
    torch._dynamo.reset()
    model, compiled = (build() for _ in range(2))
    use_weights(compiled).backbone.compile_steps()
    _same(*(decode(m, make_prompts(), DRAWN, [1, 2, 3], [6, 6, 6]) for m in (compiled, model)))


def test_entropix_which_sees_attention_is_refused() -> None:
    compiled = build(backbone="llama")
    use_weights(compiled).backbone.compile_steps(CompileCounter())
    with pytest.raises(ValueError, match="leave out --entropix or --compile"):
        Engine(compiled, SamplingConfig(ar=SamplingParams(entropix=True), candidates=1))


def test_a_backbone_without_such_steps_says_so() -> None:
    with pytest.raises(ValueError, match="retnet cannot be compiled"):
        build(backbone="retnet", kv_heads=4).backbone.compile_steps()
