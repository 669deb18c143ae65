"""Two real processes on gloo train as one does with twice the batch; rank 0 alone writes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.test_architecture import ROOT
from tests.training.test_run import make_project, params, run
from vall_e.config import TrainConfig
from vall_e.data.batches import Batches
from vall_e.training.ranks import check_launch, rank_of, strategy_of

SETTINGS = {
    "optimizer": "adamw", "text_dropout": 0.0, "input_mask": 0.0, "input_random": 0.0, "prompt_dropout": 0.0,
    "loader_workers": 0, "device": "cpu",
}  # fmt: skip
TOLERANCE = 2e-5  # of a weight after 4 to 8 steps: sums of gradients in another order

SCRIPT = '''
"""A rank: trains, and leaves what it drew and what it ended with beside the project."""
import argparse
import math
import sys
import types
from pathlib import Path

import lightning.pytorch.strategies.deepspeed as deepspeed
import torch
from lightning.pytorch.accelerators import CPUAccelerator

from tests.training.test_run import params, run
from vall_e.data.batches import Batches
from vall_e.models.vall_e import VallE
from vall_e.training import run as training
from vall_e.training.module import VallEModule
from vall_e.training.ranks import rank_of

root, settings = Path(sys.argv[1]), eval(sys.argv[2])
poisoned = settings.pop("poisoned", [])  # steps of rank 1 whose loss is no number, once for each time they are listed
if settings.pop("every_weight", False):
    loss_of = VallE.loss
    VallE.loss = lambda *args, **named: loss_of(*args, **named | {"every_weight": True})
# Lightning lets DeepSpeed run on GPUs only; DeepSpeed itself does not mind
deepspeed.CUDAAccelerator, deepspeed._validate_device_index_selection = CPUAccelerator, lambda devices: None
deepspeed.argparse = types.SimpleNamespace(Namespace=lambda device_rank: argparse.Namespace(device_rank=0))
drawn, plain, fitted, stepped = [], Batches._make_pool, training.fit, VallEModule.training_step

def fit(*args):
    out = fitted(*args)
    torch.save({"weights": out.weights, "drawn": drawn}, root / f"rank{rank_of()}.pt")
    return out

def _make_pool(self, number):
    if self.maker.augment:
        first = (number * self.world + self.rank) * self.samples_per_pool
        drawn.append([int(i) for i in self.order.at(torch.arange(first, first + self.samples_per_pool).numpy())])
    return plain(self, number)

def training_step(self, batch, index):
    loss, now = stepped(self, batch, index), self.global_step + 1
    if rank_of() == 1 and now in poisoned:
        poisoned.remove(now)
        return loss * math.nan
    return loss

Batches._make_pool, training.fit, VallEModule.training_step = _make_pool, fit, training_step
run(root, params(**{"steps": 4, "devices": 2} | settings))
'''


def _two(root: Path, settings: dict, *launcher: str) -> str:
    """Returns what they printed."""
    make_project(root)
    script = root / "rank.py"
    script.write_text(SCRIPT)
    found = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*(launcher or [sys.executable]), str(script), str(root), repr(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    _two(root, SETTINGS)
    return root


def test_two_ranks_are_one_with_twice_the_batch(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process that accumulates the two ranks' batches takes the same steps."""
    make_project(tmp_path)
    plain, shares = Batches.batch, {}

    def batch(self: Batches, step: int) -> list:
        if not self.maker.augment:
            return plain(self, step)
        if not shares:
            shares.update({rank: self.share(rank, 2) for rank in range(2)})
        return plain(shares[step % 2], step // 2)

    monkeypatch.setattr(Batches, "batch", batch)
    one = run(tmp_path, params(4, accumulate=2, **SETTINGS))
    a, b = (load_file(root / "models/voice/model.safetensors") for root in (tmp_path, two))
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=0, atol=TOLERANCE)
    curve = (two / "plots/train.csv").read_text()
    (loss,) = re.findall(r"^4,val,loss,(.*)$", curve, flags=re.MULTILINE)
    assert float(loss) == pytest.approx(one["val.loss"], abs=1e-3)


def test_both_ranks_end_with_the_same_weights_and_rank_0_alone_writes(two: Path) -> None:
    first, second = (torch.load(two / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    steps = [
        line.split(",")[0] for line in (two / "plots/train.csv").read_text().splitlines() if ",train,loss," in line
    ]
    assert steps == ["4"]  # once
    assert not list(two.glob(".work/train-*"))


def test_ranks_draw_nothing_twice_in_an_epoch(two: Path) -> None:
    """The utterances that samples are made around; of joined clips the first. Those joined to it are drawn freely."""
    pools = [torch.load(two / f"rank{rank}.pt", weights_only=False)["drawn"] for rank in range(2)]
    size = len(pools[0][0])
    epoch = 26  # utterances of the split
    seen = [index for turn in zip(*pools, strict=False) for pool in turn for index in pool]
    assert len(seen) >= 2 * size
    assert max(Counter(seen[:epoch]).values()) == 1


@pytest.mark.slow
def test_torchrun_starts_them_as_well(two: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    _two(tmp_path, SETTINGS, *launcher)
    a, b = (load_file(root / "models/voice/model.safetensors") for root in (tmp_path, two))
    assert all(torch.equal(a[name], b[name]) for name in a)


def _rolled_back(root: Path, **settings: object) -> dict[str, torch.Tensor]:
    """Weights of ranks that go back from step 5 to their newest checkpoint, and from there to the one before."""
    said = _two(root, SETTINGS | {"ema_decay": 0.0, "steps": 8, "poisoned": [5, 5]} | settings)
    assert re.findall(r"step 5: the loss is nan: back to the checkpoint of step (\d)", said) == ["4", "2"]  # once each
    return load_file(root / "models/voice/model.safetensors")


def test_one_rank_that_diverges_takes_all_of_them_back(tmp_path: Path) -> None:
    _rolled_back(tmp_path, strategy="ddp")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)["weights"] for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_ranks_whose_blocks_are_compiled_end_alike(two: Path, tmp_path: Path) -> None:
    _two(tmp_path, SETTINGS | {"compile": True})
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)["weights"] for rank in range(2))
    plain = load_file(two / "models/voice/model.safetensors")
    for name in plain:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], plain[name], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_what_is_shared_out_goes_back_and_ends_as_whole_weights(strategy: str, tmp_path: Path) -> None:
    """With batches whose rows train other parts of the model in each rank."""
    if strategy == "deepspeed":
        pytest.importorskip("deepspeed")
    model = {"kind": "ar+nar-len"}
    a = _rolled_back(tmp_path / "ddp", strategy="ddp", model=model, every_weight=True)
    b = _rolled_back(tmp_path / strategy, strategy=strategy, model=model)
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=0, atol=TOLERANCE)


def test_deepspeed_in_bfloat16_leaves_the_exact_weights(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    _two(tmp_path, SETTINGS | {"ema_decay": 0.0, "strategy": "deepspeed", "precision": "bf16-mixed"})
    weights = load_file(tmp_path / "models/voice/model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())


def test_who_a_process_is_and_what_was_started() -> None:
    assert [rank_of(e) for e in ({}, {"LOCAL_RANK": "1"}, {"RANK": "5", "LOCAL_RANK": "1"})] == [0, 1, 5]
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    check_launch(TrainConfig(nodes=2, devices=4), torchrun)
    with pytest.raises(ValueError, match=r"torchrun started 2 node\(s\) of 4 processes, and .* are 1, 4"):
        check_launch(TrainConfig(devices=4), torchrun)
    with pytest.raises(ValueError, match="torchrun --nnodes 2 --nproc-per-node 4 -m stages.train"):
        check_launch(TrainConfig(nodes=2, devices=4), {})


def test_what_cannot_be_shared_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="train.optimizer adamw"):
        TrainConfig(strategy="fsdp", optimizer="muon")
    with pytest.raises(ValueError, match="set train.ema_decay 0"):
        TrainConfig(strategy="deepspeed", optimizer="adamw")
    everything = r"train.optimizer adamw and train.muon_lr 0.02; .*ema_decay 0 .*; .*samples .*null; .*bf16-mixed.*; or"
    with pytest.raises(ValueError, match=everything):
        TrainConfig(strategy="fsdp", muon_lr=0.1, samples={}, precision="16-mixed")
    monkeypatch.setattr("vall_e.training.ranks.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"vall-e-workflow\[deepspeed\]"):
        strategy_of(TrainConfig(strategy="deepspeed", optimizer="adamw", ema_decay=0.0))
