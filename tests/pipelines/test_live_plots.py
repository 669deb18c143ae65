"""While a training runs, DVC in another process draws its curves so far, beside those of the last commit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.test_architecture import ROOT

pytestmark = pytest.mark.slow
SECONDS = 240
# A stage that leaves its curves where the train stage does, and stands still at step 20 until the file "go" is there.
SCRIPT = """\
import shutil, time
from pathlib import Path
Path("live").mkdir(exist_ok=True)
Path("live/train.csv").write_text("step,split,name,value\\r\\n")
for step in range(10, int(Path("params.yaml").read_text().split()[1]) + 1, 10):
    with open("live/train.csv", "a", newline="") as file:
        file.write(f"{step},train,loss,{1 / step:.6g}\\r\\n{step},train,accuracy.0,0.5\\r\\n")
    if step == 20:
        Path("paused").touch()
        while not Path("go").exists():
            time.sleep(0.02)
Path("plots").mkdir(exist_ok=True)
shutil.copyfile("live/train.csv", "plots/train.csv")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A training as the only stage, with the plots of the project's own dvc.yaml."""
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    stage = {"cmd": f"{sys.executable} training.py", "params": ["steps"], "plots": pipeline["stages"]["train"]["plots"]}
    plots = [plot for plot in pipeline["plots"] if "training" in plot]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}, "plots": plots}))
    (tmp_path / "training.py").write_text(SCRIPT)
    (tmp_path / "params.yaml").write_text("steps: 10\n")
    (tmp_path / ".gitignore").write_text("/live/\n/paused\n/go\n")
    run(tmp_path, "git", "init", "-q", ".")
    dvc(tmp_path, "init", "-q")
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots", dirs_exist_ok=True)
    return tmp_path


def run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dvc(root: Path, *words: str) -> str:
    return run(root, sys.executable, "-m", "dvc", *words)


def drawn(root: Path, *words: str) -> dict[str, set[int]]:
    """Steps of the loss in the picture "training", by revision."""
    (plot,) = json.loads(dvc(root, "plots", *words, "--json"))["data"]["training"]
    found: dict[str, set[int]] = {}
    for point in points(json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]):
        if point["name"] == "loss" and point["split"] == "train":
            found.setdefault(point["rev"], set()).add(int(point["step"]))
    return found


def points(content: dict) -> Iterator[dict]:
    assert content["facet"]["field"] == "name" and content["spec"]["encoding"]["y"]["field"] == "value"
    yield from content["data"]["values"]


def test_curves_are_drawn_during_a_run_and_behind_it(project: Path) -> None:
    dvc(project, "repro", "-q")
    assert drawn(project, "show") == {"workspace": {10}}
    run(project, "git", "add", ".")
    run(project, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "ten steps")
    (project / "params.yaml").write_text("steps: 30\n")
    process = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q"], cwd=project, start_new_session=True)
    try:
        until = time.monotonic() + SECONDS
        while not (project / "paused").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        assert not (project / "plots/train.csv").exists()
        assert drawn(project, "show") == {"workspace": {10, 20}}
        assert drawn(project, "diff", "HEAD") == {"HEAD": {10}, "workspace": {10, 20}}
    finally:
        (project / "go").touch()
        assert process.wait(SECONDS) == 0
    assert drawn(project, "show") == {"workspace": {10, 20, 30}}
