"""Compiled blocks train to the same losses, under the same names, with few compilations."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.tiny import build, of_task, rows, train_config
from vall_e.config import ConfigError, parse_params
from vall_e.models.packing import pack
from vall_e.training.compiling import compile_blocks
from vall_e.training.optimizers import build_optimizer


def _losses(model: torch.nn.Module, steps: int = 4) -> list[float]:
    optimizer, out = build_optimizer(model.train(), train_config(optimizer="adamw", lr=3e-3)), []
    for step in range(steps):
        samples = [
            *rows(model.config),
            *(of_task("tts", step, response=6 + 7 * (step % 3)) for _ in range(step % 2 + 1)),
        ]
        loss = model.loss(pack(samples, model.layout, 16))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(float(loss))
    return out


SLOW = [pytest.param(each, marks=pytest.mark.slow) for each in ({"kind": "ar-depth"}, {"backbone": "mixtral"})]


@pytest.mark.parametrize("options", [{"kind": "ar+nar-len"}, {"backbone": "retnet"}, *SLOW])
def test_compiled_blocks_learn_the_same(options: dict) -> None:
    torch._dynamo.reset()
    plain, compiled = build(**options), build(**options)
    counter = CompileCounterWithBackend("aot_eager")
    compile_blocks(compiled.backbone, counter)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert _losses(compiled) == pytest.approx(_losses(plain), rel=1e-4)
    assert 0 < counter.frame_count <= 10


def test_a_backbone_that_nobody_compiled_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.compile: the blocks of mamba .* take llama, mixtral"):
        parse_params({"train": {"compile": True}, "model": {"backbone": "mamba"}})
