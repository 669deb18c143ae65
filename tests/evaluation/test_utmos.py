"""The hook for a scripted model that scores waves, with toys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.test_voices import voice
from vall_e.evaluation.utmos import RATE, SHORTEST, Utmos, UtmosError


class Seconds(torch.nn.Module):
    """A score that tells what was heard: seconds at 16 kHz."""

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return wave.shape[1] / 16000.0 + 0.0 * wave.sum(dim=1)


class Frames(torch.nn.Module):
    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return wave[:, ::100]


class Batch(torch.nn.Module):
    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return wave.reshape(3, -1, 7).mean()


def saved(module: torch.nn.Module, folder: Path) -> Path:
    torch.jit.save(torch.jit.script(module), str(folder / "mos.pt"))
    return folder / "mos.pt"


def test_a_scripted_model_hears_16_khz_and_no_silence(tmp_path: Path) -> None:
    judge = Utmos(saved(Seconds(), tmp_path))
    assert judge.score(voice(120, 700, 2.0), RATE) == pytest.approx(2.0)
    assert judge.score(voice(120, 700, 3.0, 8_000), 8_000) == pytest.approx(3.0, abs=1e-3)
    assert judge.score(voice(120, 700, 0.1), RATE) == pytest.approx(SHORTEST / RATE)
    assert judge.score(np.zeros(RATE, np.float32), RATE) is None
    assert judge.score(np.zeros(0, np.float32), RATE) is None


def test_what_is_no_such_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UtmosError, match="no such file"):
        Utmos(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UtmosError, match="text.pt is no TorchScript"):
        Utmos(tmp_path / "text.pt")
    with pytest.raises(UtmosError, match="no single score"):
        Utmos(saved(Frames(), tmp_path)).score(voice(120, 700, 1.0), RATE)
    with pytest.raises(UtmosError, match="does not take a wave"):
        Utmos(saved(Batch(), tmp_path)).score(voice(120, 700, 1.0), RATE)
