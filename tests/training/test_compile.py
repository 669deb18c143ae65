"""Compiled blocks train to the same losses, under the same names, with few compilations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.tiny import build, model_config, of_task, rows, train_config
from vall_e.config import ConfigError, parse_params
from vall_e.models.packing import pack
from vall_e.training import compiling
from vall_e.training.compiling import compile_blocks, hindrance_to, verdict
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


LONG = {"compile": "auto", "device": "cpu", "max_steps": 1_000, "batch_frames": 2_000, "accumulate": 2}


def test_auto_compiles_what_takes_long_and_was_shown_to_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "hindrance_to", lambda device: None)
    model = model_config(backbone="llama")
    assert verdict(train_config(**LONG), model, 3_000_000).compiles  # 6 · 3e6 · 2,000 · 2 · 1,000 = 7.2e13
    short = verdict(train_config(**LONG | {"max_steps": 600}), model, 3_000_000)
    assert not short.compiles and "4.3e+13" in short.why
    assert verdict(train_config(**LONG | {"max_steps": 1, "compile": True}), model, 1).compiles
    assert not verdict(train_config(**LONG | {"compile": False}), model, 10**9).compiles
    for options, changes, what in (
        ({"backbone": "mamba"}, {}, "backbone mamba"),
        ({"lora": {}}, {}, "model.lora"),
        ({}, {"layerskip": {}}, "train.layerskip"),
        ({}, {"strategy": "fsdp", "devices": 2, "ema_decay": 0.0, "optimizer": "adamw"}, "strategy fsdp"),
    ):
        found = verdict(train_config(**LONG | changes), model_config(**options), 3_000_000)
        assert not found.compiles and found.why.startswith(what)


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Nothing is known of the compiler, before and after."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    torch._dynamo.reset()
    hindrance_to.cache_clear()


@pytest.mark.usefixtures("forgetful")
def test_without_a_compiler_training_is_plain_and_says_so() -> None:
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        found = verdict(train_config(**LONG), model_config(backbone="llama"), 3_000_000)
        assert not found.compiles and "it would pay" in found.why and "no-such-compiler" in found.why
        compiled = build()
        compile_blocks(compiled.backbone)
        with pytest.raises(Exception, match="no-such-compiler"):  # asked for by name it is an error
            _losses(compiled, 1)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_with_a_compiler_nothing_hinders() -> None:
    assert hindrance_to("cpu") is None
