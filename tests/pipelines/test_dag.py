from __future__ import annotations

import pytest

from pipelines.dag import stage_order
from vall_e.config import ConfigError


def test_order_follows_dependencies_not_the_file(tiny):
    assert stage_order(tiny) == ["a", "b", "c"]
    assert stage_order(tiny, ["b"]) == ["a", "b"]


def test_an_unknown_stage_is_named_with_those_there_are(tiny):
    with pytest.raises(ConfigError, match="no stage d in dvc.yaml; there are a, b, c"):
        stage_order(tiny, ["d"])


def test_a_folder_without_dvc_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="DVC cannot read the pipeline"):
        stage_order(tmp_path)


def test_the_projects_own_pipeline(project_root):
    assert stage_order(project_root) == [
        "ingest", "transcribe", "quality", "fit_codec", "phonemize", "encode", "similar", "card", "train",
        "evaluate", "score", "register", "report",
    ]  # fmt: skip
