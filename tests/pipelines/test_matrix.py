"""A matrix of DVC stages on a toy pipeline: a workspace for each cell, one cache, one MLflow store."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dag import stage_order

_STAGE = """\
import json, pathlib, sys
from stages.recorder import Recorder
from vall_e.config import load_params
params, name = load_params(), sys.argv[1]
with Recorder(params.tracking, pathlib.Path("."), name, params.profile, "model") as run:
    run.params({"model": {"kind": params.model.kind}})
pathlib.Path(name).write_text(name)
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/summary.json").write_text(json.dumps({"kind": params.model.kind}))
"""


@pytest.mark.slow
def test_cells_write_to_one_store_and_share_what_they_have_in_common(
    tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    for name in ("params.yaml", ".dvcignore"):
        shutil.copy(project_root / name, name)
    for name in ("conf", "stages", "vall_e", "matrix"):
        Path(name).mkdir()
        Path(name, "code.py").write_text(_STAGE)
    shutil.copy(project_root / "conf/demo-corpus.yaml", "conf")
    run = {name: f"{sys.executable} stages/code.py {name}" for name in ("encode", "train")}
    shared = {"cmd": run["encode"], "params": ["codec.name"], "outs": ["encode"]}
    trained = {"cmd": run["train"], "deps": ["encode"], "params": ["model.kind"], "outs": ["train"]}
    stages = {"encode": shared, "train": trained | {"metrics": ["metrics/summary.json"]}}
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    text = (project_root / "conf/matrix.yaml").read_text()
    Path("matrix/dvc.yaml").write_text(text.replace("[mel, encodec]", "[mel]"))
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    assert stage_order(tmp_path) == ["encode", "train"]
    subprocess.run([sys.executable, "-m", "dvc", "repro", "matrix/dvc.yaml"], check=True, timeout=300)
    found = {path.stem: json.loads(path.read_text()) for path in Path("matrix").glob("*.json")}
    assert found == {f"mel-{kind}": {"kind": kind} for kind in ("ar-depth", "nar-len")}
    assert list(tmp_path.rglob("mlflow.db")) == [tmp_path / "mlflow.db"]
    with sqlite3.connect("mlflow.db") as store:
        tags = store.execute("select run_uuid, key, value from tags where key in ('stage', 'point')").fetchall()
    runs = [tuple(v for uuid, _, v in sorted(tags) if uuid == each) for each in sorted({t[0] for t in tags})]
    point = "codec.name=mel model.kind="
    assert sorted(stage for _, stage in runs) == ["encode", "train", "train"]
    assert {p for p, stage in runs if stage == "train"} == {f"{point}ar-depth", f"{point}nar-len"}
