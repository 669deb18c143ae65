"""Voices out of MLflow's registry, on a temporary SQLite store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from stages import tracking
from stages.fetch import RegistryError, fetch
from stages.preflight import with_voice
from vall_e.config import Params, TrackingConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of the model "anna": a voice, whose alias is champion, and something else."""
    root = tmp_path_factory.mktemp("registry")
    client, experiment = tracking.open_store(TrackingConfig(), root)
    client.create_registered_model("anna")
    for content in ("voice", "else"):
        model = root / f"model-{content}"
        (model / "artifacts/kept").mkdir(parents=True)
        (model / "artifacts/kept/config.json").write_text(f'"{content}"')
        flavor = {"artifacts": {content: {"path": "artifacts/kept", "uri": "unused"}}}
        (model / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))
        run = client.create_run(experiment)
        client.log_artifacts(run.info.run_id, str(model), "model")
        source = f"{run.info.artifact_uri}/model"
        client.create_model_version("anna", source, run.info.run_id)
    client.set_registered_model_alias("anna", "champion", "1")
    return root


def test_a_name_becomes_the_folder_of_its_version(root: Path) -> None:
    folder = fetch("models:/anna@champion", TrackingConfig(), root)
    assert folder == root / ".work/registered/anna/1" == fetch("models:/anna/1", TrackingConfig(), root)
    assert (folder / "config.json").read_text() == '"voice"'
    (folder / "config.json").write_text("kept")
    assert (fetch("models:/anna/1", TrackingConfig(), root) / "config.json").read_text() == "kept"
    shutil.rmtree(folder)
    assert (fetch("models:/anna/1", TrackingConfig(), root) / "config.json").read_text() == '"voice"'


@pytest.mark.parametrize("name, said", [
    ("models:/anna", "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
    ("models:/anna/2", "is no voice of this project: its model has no artifact 'voice'"),
    ("models:/anna/7", "anna.*7.*tracking.uri: sqlite"),
    ("models:/anna@nobody", "nobody.*tracking.uri: sqlite"),
])  # fmt: skip
def test_what_is_not_there_is_told(root: Path, name: str, said: str) -> None:
    with pytest.raises(RegistryError, match=said):
        fetch(name, TrackingConfig(), root)
    assert not list((root / ".work/registered/anna").glob("[!1]*"))


def test_training_is_given_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    asked = Params.model_validate({"train": {"init_from": "models:/anna@champion"}})
    assert with_voice(asked).train.init_from == ".work/registered/anna/1"
    folder = Params.model_validate({"train": {"init_from": "models/base"}})
    assert with_voice(folder) is folder
