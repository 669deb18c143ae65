"""Kill a stage in the middle with SIGKILL, run ``dvc repro`` again: the same result, without starting over."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.process import run_process
from pipelines.profile import overridden
from vall_e.config import load_params
from vall_e.corpus.encode import encode
from vall_e.corpus.fit_codec import fit_codec
from vall_e.corpus.ingest import ingest
from vall_e.corpus.phonemize import phonemize
from vall_e.corpus.similar import similar
from vall_e.corpus.transcribe import transcribe
from vall_e.corpus.work import digest_of
from vall_e.training.run import train

pytestmark = pytest.mark.slow
SECONDS = 300
SETTINGS = {
    "profile": "kill-test",
    "ingest": {"source": "folder", "path": "recordings", "layout": "pattern", "pattern": "{text}_{speaker}_{take}"}
    | {"split_by": "utterance", "min_seconds": 0.1},
    "transcribe": {"verify_fraction": 0.0},
    "codec": {"mel": {"steps": 4, "width": 16, "codes": 16, "code_dim": 8, "batch_size": 4}},
    "encode": {"shard_size": 5, "speeds": [0.9, 1.1]},
    "model": {"dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "ff_dim": 64, "depth_dim": 32},
    "train": {"max_steps": 60, "checkpoint_every": 10, "batch_frames": 400, "threads": 1},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory, project_root) -> Path:
    """A copy of the project with 60 hums of two speakers for recordings, and what comes before encode done."""
    root = tmp_path_factory.mktemp("project")
    for name in ("vall_e", "stages", "pipelines", ".dvc"):
        ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp")
        shutil.copytree(project_root / name, root / name, ignore=ignored)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(project_root / name, root)
    subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
    text, _ = overridden((project_root / "params.yaml").read_text(encoding="utf-8"), SETTINGS)
    (root / "params.yaml").write_text(text, encoding="utf-8")
    random = np.random.default_rng(0)
    (root / "recordings").mkdir()
    for speaker, pitch in (("ann", 200.0), ("bob", 110.0)):
        for take in range(30):
            phase = np.cumsum(pitch * random.uniform(0.9, 1.2, 16_000)) / 16_000 * 2 * np.pi
            word = ("one", "two", "three")[take % 3]
            soundfile.write(root / "recordings" / f"{word}_{speaker}_{take}.wav", 0.3 * np.sin(phase), 16_000)
    params = load_params(root / "params.yaml")
    manifest, transcripts = root / "data/ingest/manifest.parquet", root / "data/transcribe/transcripts.parquet"
    settings = params.ingest.model_copy(update={"path": str(root / "recordings")})
    ingest(settings, manifest.parent, progress=False)
    transcribe(params.transcribe, manifest, transcripts.parent, root / ".work", progress=False)
    phonemize(params.phonemize, manifest, transcripts, root / "data/phonemize", progress=False)
    fit_codec(params, manifest, transcripts, root / "models/codec", progress=False)
    return root


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TQDM_MININTERVAL": "0", "OMP_NUM_THREADS": "1"}


def _run(root: Path, command: list[str]) -> list[str]:
    code, lines = run_process(command, lambda line: None, cwd=root, env=_environment(), timeout=SECONDS)
    assert code == 0, "\n".join(lines[-30:])
    return lines


def _kill_when(root: Path, stage: str, pattern: str, count: int) -> None:
    """Start ``dvc repro STAGE`` and kill its process group as soon as ``count`` files match in the work folder."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    process = subprocess.Popen(command, cwd=root, env=_environment(), start_new_session=True)
    until = time.monotonic() + SECONDS
    try:
        while len(list(root.glob(f".work/{stage}-*/{pattern}"))) < count:
            assert process.poll() is None, f"{stage} ended before it could be killed"
            assert time.monotonic() < until, f"{stage} never wrote {count} x {pattern}"
            time.sleep(0.002)
    finally:
        with contextlib.suppress(ProcessLookupError):  # an end before its time is the assertion's to tell
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _first_progress(lines: list[str], stage: str) -> tuple[int, int]:
    """Where the stage's progress bar began, and where it ends."""
    found = next(match for line in lines if (match := re.search(rf"{stage}:.* (\d+)/(\d+) ", line)))
    return int(found[1]), int(found[2])


def test_encode(project, tmp_path):
    _kill_when(project, "encode", "shard-*.parquet", 4)
    assert not (project / "data/encode").exists()
    done = {path.name: path.stat().st_mtime_ns for path in project.glob(".work/encode-*/shard-*.parquet")}
    assert 4 <= len(done) < 12
    # Uncommitted outs are the very files that the stage wrote, not DVC's copies of them.
    _run(project, [sys.executable, "-m", "dvc", "repro", "--no-commit", "--single-item", "encode"])
    assert {name: (project / "data/encode" / name).stat().st_mtime_ns for name in done} == done
    assert not list(project.glob(".work/encode-*"))
    params, manifest = load_params(project / "params.yaml"), project / "data/ingest/manifest.parquet"
    phones, again = project / "data/phonemize/phones.parquet", tmp_path / "again"
    encode(params, manifest, phones, project / "models/codec", again, tmp_path / "work", progress=False)
    assert digest_of(project / "data/encode") == digest_of(again)


def test_train(project, tmp_path):
    params = load_params(project / "params.yaml")
    similar(params.similar, project / "data/ingest/manifest.parquet", project / "data/encode", project / "data/similar")
    _kill_when(project, "train", "last.ckpt", 1)
    assert not (project / "models/voice").exists()
    lines = _run(project, [sys.executable, "-m", "dvc", "repro", "--single-item", "train"])
    began, total = _first_progress(lines, "train")
    assert 10 <= began < total == 60
    train(params, project, tmp_path / "voice", tmp_path / "train.csv", tmp_path / "work")
    assert digest_of(tmp_path / "voice/model.safetensors") == digest_of(project / "models/voice/model.safetensors")
    assert _losses(tmp_path / "train.csv") == _losses(project / "plots/train.csv")


def _losses(curves: Path) -> list[str]:
    return [line for line in curves.read_text(encoding="utf-8").splitlines() if ",loss" in line]
