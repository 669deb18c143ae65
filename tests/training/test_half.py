"""Training in float16 with a scaler of the loss: what overflows is left out, and a killed run ends as a whole one.

Lightning, and a check of ours before it, know ``16-mixed`` on GPUs only; torch computes it on a CPU as well.
"""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file

from tests.training.test_run import make_project, params, run
from vall_e.models.packing import Packed
from vall_e.training.module import VallEModule

TOO_LARGE = 2.0**20  # a scale by which gradients leave float16


@pytest.fixture
def scalers(monkeypatch: pytest.MonkeyPatch) -> list[torch.amp.GradScaler]:
    """Lets a trainer work in 16-mixed here; the scalers of those that were made."""
    plain, known, made = pl.Trainer, torch.cuda.is_available, []

    def trainer(*, precision: str, plugins: list, **named: object) -> pl.Trainer:
        assert precision == "16-mixed"
        monkeypatch.setattr(torch.cuda, "is_available", known)
        made.append(torch.amp.GradScaler("cpu", init_scale=TOO_LARGE, growth_interval=4))
        return plain(plugins=[*plugins, MixedPrecision(precision, "cpu", made[-1])], **named)

    monkeypatch.setattr(pl, "Trainer", trainer)
    return made


def _half(monkeypatch: pytest.MonkeyPatch, root: Path) -> dict[str, float]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # until there is a trainer
    return run(root, params(12, precision="16-mixed"))


def test_steps_that_overflow_are_left_out_and_a_killed_run_ends_as_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scalers: list[torch.amp.GradScaler]
) -> None:
    for name in ("whole", "killed"):
        make_project(tmp_path / name)
    figures = _half(monkeypatch, tmp_path / "whole")
    assert figures["rollbacks"] == 0  # a gradient that is no number is the scaler's affair
    assert scalers[0].get_scale() < TOO_LARGE
    plain = VallEModule.training_step

    def dies(self: VallEModule, batch: Packed, index: int) -> torch.Tensor:
        if self.global_step == 7:
            raise OSError("killed")
        return plain(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(VallEModule, "training_step", dies)
        with pytest.raises(OSError, match="killed"):
            _half(monkeypatch, tmp_path / "killed")
    _half(monkeypatch, tmp_path / "killed")
    first, _, last = scalers
    assert last.state_dict() == first.state_dict()
    whole, killed = (load_file(tmp_path / name / "models/voice/model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
