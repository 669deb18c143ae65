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
from vall_e.corpus.screen import screen
from vall_e.corpus.similar import similar
from vall_e.corpus.transcribe import transcribe
from vall_e.corpus.work import digest_of
from vall_e.training.run import train

pytestmark = pytest.mark.slow
SECONDS = 300
SHARDS = {  # what a finished shard of a stage leaves in its work folder
    "transcribe": "shard-*.jsonl",
    "quality": "measures-*.parquet",
    "phonemize": "rejects-*.parquet",
    "similar": "features-*.npy",
}
EAR = '''
"""A recogniser that takes its time and always hears the same."""

import time

from vall_e.evaluation.hearing import Hearing, Hypothesis, Piece


class Recogniser:
    def __init__(self, config):
        pass

    def hear(self, clips, prompt=None, vad=False, words=False, languages=None):
        time.sleep(0.05)
        said = Hypothesis("one", -0.1, 0.01, True, ())
        return [Hearing("en", 0.8, [Piece(0.0, len(wav) / rate, said, ())]) for wav, rate in clips]
'''
SETTINGS = {
    "profile": "kill-test",
    "ingest": {"source": "folder", "path": "recordings", "layout": "pattern", "pattern": "{text}_{speaker}_{take}"}
    | {"min_seconds": 0.1},
    "quality": {"near_duplicates": None, "shard_size": 5},
    "split": {"by": "utterance"},
    "transcribe": {"shard_size": 5, "max_cer": 9.0},
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
    (root / "vall_e/evaluation/asr.py").write_text(EAR, encoding="utf-8")
    for name in ("phonemize", "features"):  # shards of 1000 there; their size changes no byte
        source = root / f"vall_e/corpus/{name}.py"
        source.write_text(source.read_text(encoding="utf-8").replace("SHARD = 1000", "SHARD = 5"), encoding="utf-8")
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
    given = params.transcribe.model_copy(update={"verify_fraction": 0.0})
    transcribe(given, manifest, transcripts.parent, root / ".work", progress=False)
    params, chosen = params.model_copy(update={"ingest": settings}), root / "data/quality/manifest.parquet"
    screen(params, manifest, transcripts, chosen.parent, root / ".work", progress=False)
    phonemize(params.phonemize, chosen, root / "data/phonemize", params.executor, root / ".work", progress=False)
    fit_codec(params, chosen, root / "models/codec", progress=False)
    return root


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TQDM_MININTERVAL": "0", "OMP_NUM_THREADS": "1"}


def _run(root: Path, command: list[str]) -> list[str]:
    code, lines = run_process(command, lambda line: None, cwd=root, env=_environment(), timeout=SECONDS)
    assert code == 0, "\n".join(lines[-30:])
    return lines


def _kill_when(root: Path, stage: str, pattern: str, count: int, command: list[str] | None = None) -> None:
    """Start ``dvc repro STAGE``, or ``command``, and kill its process group as soon as ``count`` files match."""
    command = command or [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    process = subprocess.Popen(command, cwd=root, env=_environment(), start_new_session=True)
    until = time.monotonic() + SECONDS
    try:
        while len(list(root.glob(pattern))) < count:
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
    _kill_when(project, "encode", ".work/encode-*/shard-*.parquet", 4)
    assert not (project / "data/encode").exists()
    done = {path.name: path.stat().st_mtime_ns for path in project.glob(".work/encode-*/shard-*.parquet")}
    assert 4 <= len(done) < 12
    # Uncommitted outs are the very files that the stage wrote, not DVC's copies of them.
    _run(project, [sys.executable, "-m", "dvc", "repro", "--no-commit", "--single-item", "encode"])
    assert {name: (project / "data/encode" / name).stat().st_mtime_ns for name in done} == done
    assert not list(project.glob(".work/encode-*"))
    params, manifest = load_params(project / "params.yaml"), project / "data/quality/manifest.parquet"
    phones, again = project / "data/phonemize/phones.parquet", tmp_path / "again"
    encode(params, manifest, phones, project / "models/codec", again, tmp_path / "work", progress=False)
    assert digest_of(project / "data/encode") == digest_of(again)


@pytest.fixture
def encoded(project: Path) -> Path:
    """The project with all that the data stages read."""
    params, manifest = load_params(project / "params.yaml"), project / "data/quality/manifest.parquet"
    phones, codes = project / "data/phonemize/phones.parquet", project / "data/encode"
    if not codes.exists():
        encode(params, manifest, phones, project / "models/codec", codes, project / ".work", progress=False)
    if not (project / "data/similar").exists():
        similar(params.similar, manifest, codes, project / "data/similar", params.executor, project / ".work", False)
    return project


@pytest.mark.parametrize("stage", SHARDS)
def test_a_killed_stage_goes_on_behind_its_last_shard_to_the_same_bytes(encoded: Path, stage: str) -> None:
    command, pattern = [sys.executable, "-m", f"stages.{stage}"], f".work/{stage}-*/{SHARDS[stage]}"
    for folder in encoded.glob(f".work/{stage}-*"):  # quality keeps what it measured
        shutil.rmtree(folder)
    shutil.rmtree(encoded / "data" / stage)
    _kill_when(encoded, stage, pattern, 3, command)
    done = {path: path.stat().st_mtime_ns for path in encoded.glob(pattern)}
    assert 3 <= len(done) < 12 and not (encoded / "data" / stage).exists()
    # Shards come in order: when a new one is there, the old ones were not made again.
    _kill_when(encoded, stage, pattern, len(done) + 1, command)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    _run(encoded, command)
    resumed = digest_of(encoded / "data" / stage)
    for folder in encoded.glob(f".work/{stage}-*"):
        shutil.rmtree(folder)
    _run(encoded, command)
    assert digest_of(encoded / "data" / stage) == resumed


def test_a_killed_card_is_written_anew(encoded: Path) -> None:
    command = [sys.executable, "-m", "stages.card"]
    _kill_when(encoded, "card", "data/.card.building", 1, command)
    assert not (encoded / "data/card").exists()
    _run(encoded, command)
    first = digest_of(encoded / "data/card")
    assert not (encoded / "data/.card.building").exists()
    _run(encoded, command)
    assert digest_of(encoded / "data/card") == first


def test_train(project, tmp_path):
    params = load_params(project / "params.yaml")
    params = params.model_copy(update={"train": params.train.model_copy(update={"loader_workers": 0})})  # no fork here
    manifest, work = project / "data/quality/manifest.parquet", project / ".work"
    similar(params.similar, manifest, project / "data/encode", project / "data/similar", params.executor, work)
    _kill_when(project, "train", ".work/train-*/last.ckpt", 1)
    assert not (project / "models/voice").exists()
    lines = _run(project, [sys.executable, "-m", "dvc", "repro", "--single-item", "train"])
    began, total = _first_progress(lines, "train")
    assert 10 <= began < total == 60
    train(params, project, tmp_path / "voice", tmp_path / "train.csv", tmp_path / "work")
    assert digest_of(tmp_path / "voice/model.safetensors") == digest_of(project / "models/voice/model.safetensors")
    assert _losses(tmp_path / "train.csv") == _losses(project / "plots/train.csv")


def _losses(curves: Path) -> list[str]:
    return [line for line in curves.read_text(encoding="utf-8").splitlines() if ",loss" in line]
