"""Voices out of MLflow's registry: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` to a folder on this machine.

A registered model of this project is a pyfunc whose artifact ``voice`` is the voice's folder.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import yaml

from stages.tracking import open_store, store_uri
from vall_e.config import TrackingConfig
from vall_e.corpus.work import replace_folder

_NAME = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
ARTIFACT = "voice"


class RegistryError(ValueError):
    """The registry has no such voice."""


def is_registered(name: str) -> bool:
    """``name`` means a registered model, not a folder."""
    return name.startswith("models:")


def fetch(name: str, config: TrackingConfig, root: Path) -> Path:
    """The folder of a registered voice, below ``.work/registered``; a version, which never changes, is fetched once.

    Raises:
        RegistryError: a name of another form, nothing registered under it, or a model that holds no voice.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise RegistryError(f"{name}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    client, _ = open_store(config, root)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        if found["alias"]:
            version = client.get_model_version_by_alias(found["name"], found["alias"]).version
        else:
            version = client.get_model_version(found["name"], found["version"]).version
        folder = root / ".work/registered" / found["name"] / str(version)
        if not folder.is_dir():
            fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
            fresh.mkdir(parents=True)
            try:
                uri = client.get_model_version_download_uri(found["name"], version)
                got = Path(download_artifacts(uri, dst_path=str(fresh), tracking_uri=store_uri(config, root)))
                replace_folder(_voice(got, name), folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except MlflowException as error:
        raise RegistryError(f"{name}: {error.message} (tracking.uri: {store_uri(config, root)})") from None
    return folder


def _voice(model: Path, name: str) -> Path:
    """The voice's folder within a downloaded model."""
    described = model / "MLmodel"
    flavors = (yaml.safe_load(described.read_text(encoding="utf-8")) if described.is_file() else {}).get("flavors", {})
    artifact = flavors.get("python_function", {}).get("artifacts", {}).get(ARTIFACT)
    folder = model / (artifact["path"] if artifact else ARTIFACT)
    if not (folder / "config.json").is_file():
        raise RegistryError(f"{name} is no voice of this project: its model has no artifact {ARTIFACT!r}")
    return folder
