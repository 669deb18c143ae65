"""A tiny DVC project, made on the spot: c depends on b, b on a; ``params.yaml`` holds one key for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_STAGE = """\
import json, pathlib, sys, yaml
name, *reads = sys.argv[1:]
value = yaml.safe_load(open("params.yaml"))[name]
if value == "bad":
    sys.exit(f"{name}: error: the value is bad: use another one")
if value == "flaky" and not pathlib.Path("tried").exists():
    pathlib.Path("tried").touch()
    sys.exit(f"{name}: failed: out of luck")
if value == "hang":
    import subprocess, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path("child.pid").write_text(str(child.pid))
    time.sleep(600)
print(f"{name} says {value}")
folder = pathlib.Path("data", name)
folder.mkdir(parents=True, exist_ok=True)
(folder / "out.txt").write_text(" ".join(open(f"data/{r}/out.txt").read() for r in reads) + str(value))
pathlib.Path("metrics").mkdir(exist_ok=True)
json.dump({"seconds": 0.5, "kept": 10, "rejected": {"short": 2}}, open(f"metrics/{name}.json", "w"))
"""


def _stage(name: str, *reads: str) -> str:
    deps = "".join(f"\n    - data/{read}" for read in reads)
    return f"""
  {name}:
    cmd: {sys.executable} stage.py {name} {" ".join(reads)}
    deps:
    - stage.py{deps}
    params:
    - {name}
    outs:
    - data/{name}
    metrics:
    - metrics/{name}.json
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the project, which is the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q", "."], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    Path("stage.py").write_text(_STAGE)
    Path("params.yaml").write_text("a: 1\nb: 2\nc: 3\n")
    Path("dvc.yaml").write_text("stages:" + _stage("c", "b") + _stage("b", "a") + _stage("a"))
    return tmp_path
