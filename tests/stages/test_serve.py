"""The whole way over the network: an MLflow server on loopback, a model registered there, served, asked to speak."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
import soundfile

from stages import registry, runs, tracking
from tests.test_cli import make_voice
from tests.test_jobs import tone
from vall_e.config import TrackingConfig
from vall_e.registry import GatesConfig

pytestmark = pytest.mark.slow
SECONDS = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(arguments: list[str], port: int, path: str, log: Path, folder: Path, **more: str) -> Iterator[str]:
    """An ``mlflow`` command that serves on ``port``, until it answers; nothing of it is left afterwards."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    env = os.environ | {"PATH": programs} | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"} | more
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True)
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
    try:
        while True:
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            try:
                urlopen(address + path, timeout=5).close()
                break
            except (URLError, OSError):
                time.sleep(0.3)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, row: dict, params: dict) -> dict:
    body = json.dumps({"dataframe_records": [row], "params": params}).encode()
    request = Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=SECONDS) as answer:
        (spoken,) = json.load(answer)["predictions"]
    return spoken


def test_a_model_on_a_server_is_served_and_speaks(tmp_path, project_root):
    port, voice = free_port(), make_voice(tmp_path / "models" / "voice")
    prompt = tone(tmp_path / "prompt.wav", 0.8)
    where = [f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "kept"), "--workers", "1"]
    server = ["server", "--backend-store-uri", *where]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # no workers for what nobody asks for
    with running(server, port, "/health", tmp_path / "server.log", tmp_path, **quiet) as uri:
        config = TrackingConfig(uri=uri, experiment="served")
        run = tracking.start(config, tmp_path, "train", "demo")
        run.params({"model": {"kind": "ar-depth"}})
        run.close()
        for _ in range(2):
            version = registry.register(run.client, "served", run.id, voice, "one two", prompt, {"profile": "demo"})
            registry.promote(run.client, version, GatesConfig(), _good())
        assert len(run.client.search_model_versions("name = 'served'")) == 1
        found = runs.find_run(run.client, tracking.experiments(run.client, config), "served@champion")
        assert found.info.run_id == run.id and not (tmp_path / "mlflow.db").exists()
        model = ["models", "serve", "--model-uri", "models:/served@champion", "--env-manager", "local"]
        other, log = free_port(), tmp_path / "served.log"
        with running(model, other, "/ping", log, tmp_path, MLFLOW_TRACKING_URI=uri) as address:
            row = {"text": "one two", "prompt": base64.b64encode(prompt.read_bytes()).decode()}
            first, again = (ask(address, row, {"candidates": 1, "seed": 3}) for _ in range(2))
            wav, rate = soundfile.read(io.BytesIO(base64.b64decode(first["audio"])))
            assert rate == first["sample_rate"] == 16_000 and len(wav) == round(first["seconds"] * rate) > 0
            assert first["audio"] == again["audio"]
            with pytest.raises(HTTPError) as refused:
                ask(address, row | {"prompt": "no Base64!"}, {})
            assert refused.value.code == 400 and "row 0: prompt" in refused.value.read().decode()


def _good() -> dict[str, dict[str, float]]:
    values = {"wer": 0.1, "similarity": 0.9}
    return {name: {"value": value, "low": value, "high": value} for name, value in values.items()}
