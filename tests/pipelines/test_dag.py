from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dag import stage_order
from stages.lineage import dvc_hash
from vall_e.config import ConfigError, read_yaml


def test_order_follows_dependencies_not_the_file(tiny):
    assert stage_order(tiny) == ["a", "b", "c"]
    assert stage_order(tiny, ["b"]) == ["a", "b"]


def test_an_unknown_stage_is_named_with_those_there_are(tiny):
    with pytest.raises(ConfigError, match="no stage d in dvc.yaml; there are a, b, c"):
        stage_order(tiny, ["d"])


def test_a_folder_without_dvc_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="DVC cannot read the pipeline"):
        stage_order(tmp_path)


def test_the_hash_of_what_a_stage_made_is_dvcs_own(tiny):
    deep = Path("made/b/c.txt")
    for path, text in ((deep, "c"), (Path("made/b.txt"), "b"), (Path("made/ä b"), ""), (Path("made/Z"), "Z")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in ("made", "stage.py"):
        subprocess.run([sys.executable, "-m", "dvc", "add", "-q", path], check=True)
        assert read_yaml(f"{path}.dvc")["outs"][0]["md5"] == dvc_hash(path)


def test_the_projects_own_pipeline(project_root):
    assert stage_order(project_root) == [
        "ingest", "transcribe", "quality", "fit_codec", "phonemize", "encode", "similar", "card", "train",
        "evaluate", "score", "register", "report",
    ]  # fmt: skip
