"""A new voice from recordings: the workspace that is made for it, and the whole run (slow)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines import adapt
from pipelines.profile import overridden
from tests.training.test_run import make_project, params, run
from vall_e.config import load_params
from vall_e.models.checkpoint import load_config, same_codec
from vall_e.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    make_project(root)
    run(root, params(1, loader_workers=0))
    return root / "models/voice"


@pytest.fixture
def project(tmp_path: Path, project_root: Path, voice: Path) -> Path:
    """What of the project the command reads, a voice in models/voice, recordings in anna/."""
    for name in ("params.yaml", "dvc.yaml", ".dvcignore"):
        shutil.copy(project_root / name, tmp_path)
    shutil.copytree(project_root / "conf", tmp_path / "conf")
    for name in ("stages", "vall_e"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text("pass\n")
    shutil.copytree(voice, tmp_path / "models/voice")
    (tmp_path / "anna").mkdir()
    soundfile.write(tmp_path / "anna/one.wav", np.zeros(8000, np.float32), 8000)
    return tmp_path


def _prepare(project: Path, *settings: str) -> Path:
    workspace = project / ".work/adapt/anna"
    adapt.prepare(project, workspace, project / "anna", "models/voice", "finetune", settings)
    return workspace


def test_what_must_be_as_in_the_base_voice_is(project: Path) -> None:
    workspace = _prepare(project, "train.max_steps=7", "model.lora={rank: 2}")
    made, base = load_params(workspace / "params.yaml"), load_config(project / "models/voice")
    assert made.model.model_copy(update={"lora": None}) == base.model and made.model.lora.rank == 2
    assert made.codec.mel == base.codec.mel and made.sampling == base.sampling
    assert (made.encode.trim_db, made.phonemize.words_apart) == (base.encode.trim_db, base.words_apart)
    assert (made.profile, made.train.max_steps, made.train.optimizer) == ("finetune", 7, "adamw")
    assert Path(made.ingest.path) == project / "anna" and made.tracking.uri.endswith(f"{project}/mlflow.db")
    folder = workspace / made.train.init_from
    assert same_codec(project / "models/voice", workspace / made.codec.weights)
    assert Tokenizer.load(workspace / made.phonemize.tokenizer) == Tokenizer.load(folder / "tokenizer.json")
    assert (workspace / "vall_e/code.py").is_file() and (workspace / "dvc.yaml").is_file()


def test_no_curriculum_of_the_base_begins_anew_unless_it_is_asked_for(project: Path) -> None:
    assert load_params(project / "params.yaml").train.join.curriculum_steps > 0
    join = load_params(_prepare(project) / "params.yaml").train.join
    assert join.curriculum_steps == 0 and join.max_clips > 2
    asked = load_params(_prepare(project, "train.join.curriculum_steps=9") / "params.yaml").train
    assert asked.join.curriculum_steps == 9 and asked.stages == ()
    assert load_params(_prepare(project, "train.join=null") / "params.yaml").train.join is None


def test_another_base_voice_is_another_parameter_and_the_same_is_none(project: Path) -> None:
    """Else DVC, which does not look into the folder, would take the old result for the new one."""
    first = (_prepare(project) / "params.yaml").read_text()
    assert (_prepare(project) / "params.yaml").read_text() == first
    with (project / "models/voice/model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert (_prepare(project) / "params.yaml").read_text() != first


def test_each_voice_is_registered_under_a_name_of_its_own(project: Path) -> None:
    """Else Bob would be held against Anna's figures, and might take her alias."""
    names = set()
    for name in ("anna", "bob k."):
        workspace = project / ".work/adapt" / name
        adapt.prepare(project, workspace, project / "anna", "models/voice", "finetune")
        names.add(load_params(workspace / "params.yaml").registry.name)
    assert names == {"vall-e-anna", "vall-e-bob-k."}
    assert load_params(_prepare(project, "registry.name=mine") / "params.yaml").registry.name == "mine"


@pytest.mark.parametrize(
    "settings",
    [
        {"train": {"muon_lr": 0.01}},
        {"train": {"schedule": "wsd", "decay_share": 0.4}},
        {"train": {"schedule": "step", "gamma": 0.9, "step_every": 10}},
    ],
)
def test_what_the_projects_optimiser_needs_does_not_stand_in_the_way(project: Path, settings: dict) -> None:
    text, _ = overridden((project / "params.yaml").read_text(), settings)
    (project / "params.yaml").write_text(text)
    assert load_params(_prepare(project) / "params.yaml").train.optimizer == "adamw"


def test_a_base_that_learned_from_mixtures_needs_none(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = project / "models/voice/config.json"
    facts = json.loads(config.read_text())
    facts["model"]["tasks"] = ["tts", "ns", "tse"]
    config.write_text(json.dumps(facts))
    assert load_params(_prepare(project) / "params.yaml").model.tasks == ("tts",)
    assert "not trained without encode.mixtures: ns, tse" in capsys.readouterr().err
    mixtures = "encode.mixtures={noise: anna, overlap_db: [0, 5]}"
    made = load_params(_prepare(project, mixtures) / "params.yaml")
    assert made.model.tasks == ("tts", "ns", "tse") and made.encode.mixtures.noise == str(project / "anna")


def test_paths_of_the_project_are_found_from_the_workspace(project: Path) -> None:
    settings = ["similar={feature: codes, voice: models/voice}", "train.distill={voice: models/voice}"]
    made = load_params(_prepare(project, *settings, "score.speaker_encoder=wavlm-sv") / "params.yaml")
    assert made.similar.voice == made.train.distill.voice == str(project / "models/voice")


def test_wrong_input_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert adapt.main(["nobody", "--out", "voices/anna"]) == 1
    assert "nobody: no such folder of recordings" in capsys.readouterr().err
    assert adapt.main(["anna", "--out", "voices/anna", "--voice", "models/none"]) == 1
    assert "models/none" in capsys.readouterr().err
    assert adapt.main(["anna", "--out", "conf"]) == 1
    assert "is there and no voice" in capsys.readouterr().err
    assert adapt.main(["anna", "--out", "voices/anna", "--set", "train.max_step=1"]) == 1
    assert "unknown key" in capsys.readouterr().err


def test_a_stage_that_fails_is_said_with_where_its_work_is(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    (project / "dvc.yaml").write_text("stages:\n  one:\n    cmd: >-\n      echo 'one: error: no luck' && exit 1\n")
    assert adapt.main(["anna", "--out", "voices/anna"]) == 1
    said = capsys.readouterr().err
    assert "error: one: error: no luck" in said and ".work/adapt/anna" in said
    assert not (project / "voices").exists()
    (project / "dvc.yaml").write_text(
        "stages:\n  one:\n    cmd: mkdir -p report models/voice && touch report/index.html models/voice/config.json\n"
    )
    assert adapt.main(["anna", "--out", "voices/anna"]) == 0
    assert (project / "voices/anna/report/index.html").is_file() and (project / "voices/anna/config.json").is_file()
    assert "vall-e synth --model voices/anna" in capsys.readouterr().out


def test_a_run_that_is_ended_leaves_no_stage_behind(project: Path, project_root: Path) -> None:
    (project / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo $$ > child.pid && exec sleep 600\n")
    command = [sys.executable, "-m", "pipelines.adapt", "anna", "--out", "voices/anna"]
    env = os.environ | {"PYTHONPATH": str(project_root)}
    process = subprocess.Popen(command, cwd=project, env=env, stdout=subprocess.DEVNULL)
    child = project / ".work/adapt/anna/child.pid"
    deadline = time.monotonic() + 120
    while not (child.is_file() and child.read_text().strip()) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    pid = int(child.read_text())
    process.terminate()
    assert process.wait(60) == 143
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_a_new_voice_from_recordings(tmp_path: Path, project_root: Path, voice: Path) -> None:
    """The real stages on robot speech; the base voice is tiny and knows other phones."""
    from vall_e.corpus.demo import Voice, speak

    project = tmp_path / "project"
    tracked = subprocess.run(["git", "ls-files"], cwd=project_root, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if not name.startswith("tests/") and (project_root / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(project_root / name, project / name)
    shutil.copytree(voice, project / "models/voice")
    said = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (project / "anna").mkdir()
    for index in range(18):
        wav, rate = speak(Voice(name="anna", voice="en-us+f3", rate=130 + 5 * index), said[index % 9])
        soundfile.write(project / f"anna/{index}.wav", wav, rate)
        (project / f"anna/{index}.txt").write_text(said[index % 9])
    settings = [
        "train.max_steps=2", "train.warmup_steps=0", "transcribe.verify_fraction=0.0", "evaluate.utterances=2",
        "score.dnsmos=false", "train.prompt_seconds=[0.1, 0.3]", "evaluate.prompt_seconds=[0.2, 0.4]",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "pipelines.adapt", "anna", "--out", "voices/anna", *words]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert not (project / ".work/adapt/anna/mlruns").exists() and any((project / "mlartifacts").iterdir())
    config = load_config(project / "voices/anna")
    assert config.lineage["voice_from"].startswith("models/base-") and config.phones > load_config(voice).phones
    assert same_codec(project / "voices/anna", voice / "codec")
    assert (project / "voices/anna/report/index.html").is_file()
