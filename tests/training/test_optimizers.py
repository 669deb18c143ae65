"""Optimizers learn, resume and refuse; schedules are those of torch where it has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch.optim import lr_scheduler as oracle

from tests.tiny import KNOWN, build, rows, train_config
from tests.training.test_run import make_project, params, run
from vall_e.config import ConfigError, TrainConfig, parse_params
from vall_e.models.packing import pack
from vall_e.training import fit
from vall_e.training.optimizers import averaged, build_optimizer, rate_factor

SETTINGS = {
    "muon": {"lr": 5e-3},
    "adamw": {"lr": 5e-3},
    "adam": {"lr": 5e-3, "weight_decay": 0.0},
    "schedule-free": {"lr": 2e-2, "schedule": "hold"},
    "adafactor": {"lr": 5e-2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_optimizer_overfits_one_batch(name: str) -> None:
    model = build(alignment=False).train()
    packed = pack(rows(model.config), model.layout)
    optimizer = build_optimizer(model, train_config(optimizer=name, **SETTINGS[name]))
    for _ in range(250):
        loss = model.loss(packed)[0]
        if loss < KNOWN:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with averaged(optimizer):  # what a voice is made of
        assert model.loss(packed)[0] < 2 * KNOWN


class Stop(Callback):
    """Ends a run as a kill behind a checkpoint would."""

    def on_train_epoch_start(self, trainer, module) -> None:
        if trainer.global_step == 4:
            raise InterruptedError


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("name", ["adam", "schedule-free", "adafactor"])
def test_an_optimizer_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    name: str, ema: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = params(6, optimizer=name, ema_decay=ema, **SETTINGS[name])
    threads = torch.get_num_threads()
    for root in (tmp_path / "one", tmp_path / "two"):
        make_project(root)
    run(tmp_path / "one", config)
    trainer = fit.pl.Trainer
    with monkeypatch.context() as patch:
        patch.setattr(fit.pl, "Trainer", lambda **kw: trainer(**kw | {"callbacks": [*kw["callbacks"], Stop()]}))
        with pytest.raises(InterruptedError):
            run(tmp_path / "two", config)
    assert list(tmp_path.glob("two/.work/train-*/last.ckpt"))
    run(tmp_path / "two", config)
    torch.set_num_threads(threads)
    one, two = (load_file(tmp_path / name / "models/voice/model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _by_hand(steps: int, config: TrainConfig) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """x and y of schedule-free AdamW (2405.15682, algorithm 1) on a bowl, without decay."""
    target = torch.tensor([1.0, -2.0, 0.5])
    x = z = torch.zeros(3)
    second, total, (b1, b2) = torch.zeros(3), 0.0, config.betas
    xs, ys = [], []
    for step in range(1, steps + 1):
        y = (1 - b1) * z + b1 * x
        gradient = 2 * (y - target)
        second = b2 * second + (1 - b2) * gradient**2
        rate = config.lr * rate_factor(step - 1, config)
        z = z - rate * gradient / ((second / (1 - b2**step)).sqrt() + 1e-8)
        total += rate**2
        x = x + rate**2 / total * (z - x)
        xs.append(x)
        ys.append((1 - b1) * z + b1 * x)
    return xs, ys


def test_schedule_free_saves_the_average_and_goes_on_from_where_it_was() -> None:
    config = TrainConfig(optimizer="schedule-free", schedule="hold", lr=0.1, weight_decay=0.0, warmup_steps=4)
    model = torch.nn.Module()
    model.register_parameter("weight", torch.nn.Parameter(torch.zeros(3)))
    optimizer = build_optimizer(model, config)
    rate = oracle.LambdaLR(optimizer, lambda step: rate_factor(step, config))
    for x, y in zip(*_by_hand(12, config), strict=True):
        optimizer.zero_grad()
        ((model.weight - torch.tensor([1.0, -2.0, 0.5])) ** 2).sum().backward()
        optimizer.step()
        rate.step()
        before = model.weight.detach().clone()
        torch.testing.assert_close(before, y, rtol=1e-4, atol=1e-5)
        with averaged(optimizer):
            torch.testing.assert_close(model.weight.detach(), x, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.weight, before)


def test_the_voice_of_schedule_free_is_its_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no average of our own (``ema_decay`` 0); validation sees the same weights."""
    name = "backbone.blocks.0.feedforward.up.weight"
    seen: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_validation_batch_start(self, trainer, module, *_) -> None:
            seen["validated"] = module.model.get_parameter(name).detach().clone()

        def on_train_end(self, trainer, module) -> None:
            weight = module.model.get_parameter(name)
            seen["y"], seen["z"] = weight.detach().clone(), trainer.optimizers[0].state[weight]["z"]

    trainer, look = fit.pl.Trainer, Look()
    monkeypatch.setattr(fit.pl, "Trainer", lambda **kw: trainer(**kw | {"callbacks": [look, *kw["callbacks"]]}))
    make_project(tmp_path)
    run(tmp_path, params(4, optimizer="schedule-free", schedule="hold", ema_decay=0.0))
    saved = load_file(tmp_path / "models/voice/model.safetensors")[name]
    beta = params().train.betas[0]
    torch.testing.assert_close(saved, (seen["y"] - (1 - beta) * seen["z"]) / beta)
    assert torch.equal(saved, seen["validated"]) and (saved - seen["y"]).abs().max() > 1e-6


def _rates(schedule: str, **changes: object) -> tuple[TrainConfig, list[float]]:
    config = TrainConfig(max_steps=100, warmup_steps=10, schedule=schedule, **changes)
    return config, [rate_factor(step, config) for step in range(100)]


def _torch(*parts: tuple[int, object]) -> list[float]:
    """Rates of torch's schedulers one behind the other: the steps at which they begin, and what makes them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = [make(optimizer) for _, make in parts]
    schedule = oracle.SequentialLR(optimizer, made, [first for first, _ in parts[1:]])
    out = []
    for _ in range(100):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


WARM = (0, lambda o: oracle.LinearLR(o, 0.1, 1.0, total_iters=9))


@pytest.mark.parametrize(("schedule", "changes", "then"), [
    ("hold", {}, [(10, lambda o: oracle.ConstantLR(o, 1.0))]),
    ("linear", {}, [(10, lambda o: oracle.LinearLR(o, 1.0, 0.02, total_iters=90))]),
    ("cosine", {}, [(10, lambda o: oracle.CosineAnnealingLR(o, 90, eta_min=0.02))]),
    ("step", {"step_every": 20, "gamma": 0.3}, [(10, lambda o: oracle.StepLR(o, 20, 0.3))]),
    ("wsd", {"decay_share": 0.4}, [
        (10, lambda o: oracle.ConstantLR(o, 1.0)), (60, lambda o: oracle.LinearLR(o, 1.0, 0.02, total_iters=40)),
    ]),
])  # fmt: skip
def test_schedules_are_those_of_torch(schedule: str, changes: dict, then: list) -> None:
    _, rates = _rates(schedule, **changes)
    assert rates == pytest.approx(_torch(WARM, *then), abs=1e-6)


def test_a_stage_scales_the_rate() -> None:
    _, plain = _rates("cosine")
    _, scaled = _rates("cosine", stages=[{"until": 30, "lr_factor": 0.5}, {"until": 50, "text_dropout": 0.0}])
    assert scaled == [rate * (0.5 if step < 30 else 1.0) for step, rate in enumerate(plain)]


@pytest.mark.parametrize(("train", "reason"), [
    ({"optimizer": "schedule-free"}, "train.schedule: hold, not linear"),
    ({"optimizer": "adamw", "muon_lr": 0.1}, "train.muon_lr means nothing to optimizer adamw: leave it at 0.02"),
    ({"optimizer": "adafactor", "betas": [0.8, 0.9]}, "train.betas means nothing to optimizer adafactor"),
    ({"schedule": "cosine", "gamma": 0.1}, "train.gamma means nothing to schedule cosine"),
    ({"schedule": "step", "decay_share": 0.5}, "train.decay_share means nothing to schedule step"),
    ({"optimizer": "lion"}, "optimizer"),
    ({"precision": "16-mixed", "device": "cpu"}, "16-mixed needs a GPU .* bf16-mixed or 32-true"),
])  # fmt: skip
def test_what_means_nothing_is_refused(train: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_params({"train": train})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which can do it")
def test_half_precision_is_refused_where_no_gpu_is_found(tmp_path: Path) -> None:
    make_project(tmp_path)
    with pytest.raises(ValueError, match=r"16-mixed needs a GPU \(CUDA\), and there is none: take bf16-mixed"):
        run(tmp_path, params(2, precision="16-mixed"))
