"""The benchmark of training on the smallest of sizes: keys, and that both loops do the same work."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.train import __main__ as command
from benchmarks.train.flops import useful
from benchmarks.train.peer import ATTENTION, Loop, padded, tokens
from benchmarks.train.rounds import build
from tests.tiny import CODES
from tests.training.test_run import make_project, params
from vall_e.config import Params
from vall_e.data.batches import POOL
from vall_e.models.packing import pack
from vall_e.models.vall_e import VallE
from vall_e.training.feed import Data
from vall_e.training.module import VallEModule


@pytest.fixture
def work(tmp_path: Path) -> tuple[Params, VallE, Data]:
    make_project(tmp_path)
    chosen = params(8, loader_workers=0, optimizer="adamw")
    return chosen, *build(chosen, tmp_path, tmp_path / "work")


def test_the_report_has_every_key(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path)
    monkeypatch.setattr(command, "parse_params", lambda raw: params(8, {"kind": "ar"}, threads=1))
    assert command.main(["--project", str(tmp_path), "--rounds", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    keys = {"steps_per_s", "tokens_per_s", "over_hf_padded", "loader_share", "peak_mb", "mfu"}
    assert set(report) == keys | {"details"}
    assert all(math.isfinite(report[key]) and report[key] >= 0 for key in keys)
    found = report["details"]["over_hf_padded"]
    assert found["over"][found["attention"]] == report["over_hf_padded"] and 0 < report["mfu"] < 1
    assert set(found["ratios"]) == set(found["over"]) == set(ATTENTION)
    assert all(len(ratios) == 2 for ratios in found["ratios"].values())


def test_the_peer_is_the_same_network_whatever_is_padded(work: tuple[Params, VallE, Data]) -> None:
    chosen, model, data = work
    batch = pack(data.train_batches.batch(0), data.layout, 16)
    mine, _ = model.loss(batch, chosen.train.label_smoothing, chosen.train.alignment_weight)
    for attention in ATTENTION:
        loop = Loop(model, chosen.train, attention)
        torch.testing.assert_close(loop.loss(batch), mine, atol=1e-4, rtol=1e-4)
        modules = (loop.module, VallEModule(model, chosen.train))
        groups = [module.configure_optimizers()["optimizer"].param_groups for module in modules]
        sizes = [[sum(p.numel() for p in group["params"]) for group in each] for each in groups]
        assert sizes[0] == sizes[1]  # the optimiser has the same to do
    before = float(loop.loss(batch))
    loop.steps([batch] * 5)
    assert float(loop.loss(batch)) < before


def test_both_loops_count_the_same_tokens_and_need_the_same_operations(work: tuple[Params, VallE, Data]) -> None:
    _, model, data = work
    mine = command.pool(data, 1)
    samples = [s for k in range(POOL) for s in data.train_batches.batch(POOL + k)]
    room = max(batch.symbol.numel() for batch in mine)
    theirs = padded(samples, data.layout, room, 0)
    assert tokens(theirs) == tokens(mine) == sum(data.layout.length(s) for s in samples)
    assert sum(len(b.lengths) for b in theirs) == len(samples)
    assert all(batch.symbol.numel() <= room for batch in theirs)
    assert sum(b.symbol.numel() for b in theirs) > tokens(theirs)
    assert useful(model, theirs) == pytest.approx(useful(model, mine))
    order = [int(n) for b in theirs for n in b.lengths]
    assert order != sorted(order)  # in no order of length


def test_operations_are_those_that_torch_counts_but_for_embeddings_and_alignment(tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    make_project(tmp_path)
    model, data = build(params(8, {"kind": "ar", "alignment": False}, loader_workers=0), tmp_path, tmp_path)
    batch = pack([data.train_batches.batch(0)[0]], data.layout)
    counter = FlopCounterMode(display=False)
    with counter:
        model.loss(batch)[0].backward()
    length = int(batch.lengths[0])
    causal = 6 * model.config.layers * model.config.dim * length**2  # torch counts the other half of attention, too
    padding = 6 * model.config.dim * CODES * (128 - int((batch.target[:, 0] >= 0).sum()))
    assert useful(model, [batch]) + causal + padding == pytest.approx(counter.get_total_flops(), rel=0.02)
