"""What a killed training leaves: other settings neither take it nor delete it, and two processes never share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_run import make_project, params, run
from vall_e.config import Params
from vall_e.training import unfinished
from vall_e.training.module import VallEModule
from vall_e.training.unfinished import Busy, alone, work_folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path)
    return tmp_path


def killed(root: Path, settings: Params, step: int = 5) -> None:
    """Train and die behind ``step`` steps."""
    plain = VallEModule.training_step

    def training_step(self: VallEModule, *args: object) -> torch.Tensor:
        if self.global_step == step:
            raise OSError("killed")
        return plain(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VallEModule, "training_step", training_step)
        with pytest.raises(OSError, match="killed"):
            run(root, settings)


def _works(root: Path) -> set[str]:
    return {path.name for path in root.glob(".work/train-*")}


def test_a_run_with_other_settings_says_which_and_leaves_the_work_of_the_first(
    project: Path, capfd: pytest.CaptureFixture
) -> None:
    whole = project / "whole"
    make_project(whole)
    run(whole, params(8))
    killed(project, params(8))
    (first,) = _works(project)
    capfd.readouterr()
    run(project, params(2, lr=0.004))
    said = capfd.readouterr().err
    assert (
        f"{first} has 4 steps with other settings (train.max_steps was 8, is 2, train.lr was 0.002, is 0.004)" in said
    )
    assert "kept: those settings go on from it" in said and _works(project) == {first}
    run(project, params(8))
    said = capfd.readouterr().err
    assert "other settings" not in said and "train: 4/8 steps" in said
    one, two = (load_file(root / "models/voice/model.safetensors") for root in (whole, project))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_few_works_of_other_settings_stay_and_what_goes_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(unfinished, "KEPT", 1)

    def begin(seed: int, step: int) -> str:
        """A run that has written the checkpoint of ``step``."""
        path = work_folder(params(4, seed=seed), project, project / ".work").path
        (path / "checkpoints.json").write_text(json.dumps([{"step": step, "bytes": 1, "sha256": ""}]))
        os.utime(path, (seed, seed))
        return path.name

    seen = [begin(seed, 2) for seed in range(3)]
    assert _works(project) == set(seen[1:])
    assert f"{seen[0]} has 2 steps with other settings (train.seed was 0, is 2); removed: the last 1 such are kept" in (
        capfd.readouterr().err
    )
    begin(3, 0)  # no more than where it began
    assert begin(4, 2) in _works(project) and _works(project) & set(seen) == {seen[2]} and len(_works(project)) == 2


def test_what_has_no_influence_on_the_weights_may_change_on_the_way(project: Path) -> None:
    whole = project / "whole"
    make_project(whole)
    run(whole, params(8))
    killed(project, params(8))
    work, changes = _works(project), {"checkpoint_every": 3, "rollback": {"spike": None, "factor": 0.9}}
    killed(project, params(8, **changes), step=7)
    assert _works(project) == work
    run(project, params(8, **changes))
    one, two = (load_file(root / "models/voice/model.safetensors") for root in (whole, project))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_second_process_is_told_who_trains_and_a_dead_one_holds_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "PATIENCE", 0.1)
    work_root = project / ".work"
    code = (
        "import sys; from pathlib import Path; from vall_e.training.unfinished import alone\n"
        f"with alone(Path({str(work_root)!r})):\n    print('here', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"here\n"
    with pytest.raises(Busy, match=rf"process {process.pid} on .*end it with `kill {process.pid}`"):
        run(project, params(2))
    process.kill()
    process.communicate()
    with alone(work_root):
        assert str(os.getpid()) in (work_root / "train.pid").read_text()
    assert run(project, params(2))["steps"] == 2
