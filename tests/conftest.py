"""What all tests share: no network, no telemetry, few threads, and nothing written into the project's folder."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="vall-e-test-prefect-")  # before anything imports prefect
os.environ.pop("PREFECT_API_URL", None)

from pathlib import Path

import pytest

from pipelines.settings import use_local_prefect

use_local_prefect()
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT
