"""A voice in MLflow's registry, on SQLite: registered once, judged each time, loaded and speaking as ``pyfunc``."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from stages import lineage, registry, runs, tracking
from tests.test_cli import make_voice
from tests.test_jobs import tone
from vall_e.config import TrackingConfig
from vall_e.models.checkpoint import load_config
from vall_e.registry import GatesConfig, RegistryConfig, model_name

CONFIG = TrackingConfig(experiment="voices")
GATES = GatesConfig(max_wer=0.3, min_similarity=None)


def figures(wer: float, margin: float = 0.0) -> dict[str, dict[str, float]]:
    return {"wer": {"value": wer, "low": wer - margin, "high": wer + margin}}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("registered")


@pytest.fixture(scope="module")
def prompt(root) -> Path:
    return tone(root / "prompt.wav", 0.8, 16_000)


@pytest.fixture(scope="module")
def voices(root) -> list[Path]:
    """Three folders called ``voice``, different ones."""
    folders = [make_voice(root / str(number) / "voice") for number in range(3)]
    for number, folder in enumerate(folders):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"lineage": {"steps": number}}))
    return folders


def train(root: Path) -> tracking.Run:
    run = tracking.start(CONFIG, root, "train", "demo")
    run.close()
    return run


def register(root: Path, voice: Path, prompt: Path, name: str, run: tracking.Run | None = None):
    run = run or train(root)
    return run.client, registry.register(run.client, name, run.id, voice, "one two", prompt, {"profile": "demo"})


def test_models_of_joined_profiles_have_a_name_that_mlflow_takes(root, voices, prompt):
    name = model_name("voices of Anna's/2026", "digits+tiny-depth")
    assert RegistryConfig(name=name).name == name == "voices-of-Anna-s-2026-digits-tiny-depth"
    run = train(root)
    client, version = register(root, voices[0], prompt, name, run)
    told = lineage.tagged(client.get_run(run.id), lineage.MODEL)
    assert [key for key, _ in told] == [f"{name}.{version.version}"]


def test_the_same_voice_is_registered_once_whoever_trained_it(root, voices, prompt, tmp_path):
    client, first = register(root, voices[0], prompt, "once")
    again = shutil.copytree(voices[0], tmp_path / "voice")
    (again / "run.json").write_text('{"run_id": "another"}')
    _, second = register(root, again, prompt, "once")
    _, other = register(root, voices[1], prompt, "once")
    assert [str(version.version) for version in (first, second, other)] == ["1", "1", "2"]
    assert len(client.search_model_versions("name = 'once'")) == 2
    assert registry.voice_digest(again) == registry.voice_digest(voices[0]) != registry.voice_digest(voices[1])


def test_a_candidate_becomes_champion_only_through_all_gates_and_tags_say_why(root, voices, prompt):
    def aliases() -> dict[str, str]:
        return {alias: str(number) for alias, number in client.get_registered_model("gated").aliases.items()}

    client, first = register(root, voices[0], prompt, "gated")
    registry.promote(client, first, GATES, figures(0.4))
    assert aliases() == {"candidate": "1"}
    tags = client.get_model_version("gated", "1").tags
    assert tags["gates"] == "failed" and tags["gate.max_wer"] == "failed: 0.4 is above 0.3"
    _, first = register(root, voices[0], prompt, "gated")  # evaluated again
    registry.promote(client, first, GATES, figures(0.2, 0.04))
    assert aliases() == {"champion": "1"}
    _, worse = register(root, voices[1], prompt, "gated")
    (_, against) = registry.promote(client, worse, GATES, figures(0.28, 0.03))
    assert aliases() == {"champion": "1", "candidate": "2"} and not against.passed
    assert (
        client.get_model_version("gated", "2").tags["gate.max_worse"].startswith("failed: WER 0.28, the champion's 0.2")
    )
    _, better = register(root, voices[2], prompt, "gated")
    registry.promote(client, better, GATES, figures(0.1))
    assert aliases() == {"champion": "3", "candidate": "2"}
    assert client.get_model_version("gated", "3").tags["champion.before"] == "1"
    _, better = register(root, voices[2], prompt, "gated")
    registry.promote(client, better, GATES.model_copy(update={"max_wer": 0.05}), figures(0.1))
    assert aliases() == {"champion": "3", "candidate": "2"}, "nobody better: it stays, and says that it fails"
    assert client.get_model_version("gated", "3").tags["gates"] == "failed"


def test_killed_while_packing_leaves_no_version_and_the_next_one_cleans_up(root, voices, prompt, monkeypatch):
    run = train(root)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            register(root, voices[0], prompt, "killed", run)
    assert run.client.search_model_versions("name = 'killed'") == []
    _, version = register(root, voices[0], prompt, "killed", run)
    experiment = run.client.get_run(run.id).info.experiment_id
    left = [m for m in run.client.search_logged_models([experiment]) if m.name == "killed"]
    assert [str(m.status) for m in left] == ["READY"] and str(version.version) == "1"


@pytest.fixture(scope="module")
def packed(root, voices, prompt) -> Path:
    registry.pack(voices[0], root / "packed", "one two", prompt)
    return root / "packed"


@pytest.fixture(scope="module")
def loaded(packed):
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(packed))


def test_a_packed_voice_is_whole_and_says_what_it_takes(packed, voices):
    assert registry.voice_digest(packed / "artifacts" / "voice") == registry.voice_digest(voices[0])
    assert (packed / "code" / "vall_e" / "generation" / "synthesize.py").is_file()
    pinned = (packed / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in pinned) and any(line.startswith("torch==") for line in pinned)
    signature = registry.signature(load_config(voices[0]).sampling)
    assert signature.inputs.required_input_names() == ["text"]
    assert {p.name: p.default for p in signature.params} | {"temperature": 0} == {
        "temperature": 0, "guidance": 1.0, "candidates": 2, "max_seconds": pytest.approx(0.4), "seed": 0,
    }  # fmt: skip


def test_a_packed_voice_says_the_same_as_the_voice_itself(loaded, voices, prompt):
    from vall_e.generation.synthesize import Voice

    encoded = base64.b64encode(prompt.read_bytes()).decode()
    table = pd.DataFrame([{"text": "one two", "prompt": encoded, "speed": 1.25}, {"text": "three"}])
    spoken = loaded.predict(table, params={"candidates": 1, "seed": 7}).to_dict("records")
    voice = Voice.load(voices[0])
    own = voice.config.sampling.model_copy(update={"candidates": 1})
    wav, rate = soundfile.read(io.BytesIO(base64.b64decode(spoken[0]["audio"])), dtype="float32")
    expected = voice.speak("one two", prompt, seed=7, speed=1.25, sampling=own)
    assert rate == spoken[0]["sample_rate"] == expected.sample_rate
    assert len(wav) == len(expected.wav) and np.abs(wav - np.clip(expected.wav, -1, 1)).max() < 2e-3
    assert spoken[1]["seconds"] > 0


@pytest.mark.parametrize(
    "row, params, why",
    [
        ({"text": "one", "prompt": "no Base64!"}, {}, "row 0: prompt is not Base64"),
        ({"text": "one", "prompt": base64.b64encode(b"no sound").decode()}, {}, "prompt of row 0"),
        ({"text": " "}, {}, "say"),
        ({"text": "one"}, {"temperature": -1.0}, "temperature"),
        ({"text": "one"}, {"candidates": 0}, "candidates"),
    ],
)
def test_a_request_that_cannot_be_spoken_is_the_askers_mistake_and_says_why(loaded, row, params, why):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=why) as raised:
        loaded.predict(pd.DataFrame([row]), params=params)
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"


def test_from_a_model_to_its_data_and_back(root, voices, prompt):
    made = tracking.start(CONFIG, root, "encode", "demo", "data")
    made.wrote("data/encode", "f0" * 32, "f0.dir")
    made.close()
    run = tracking.start(CONFIG, root, "train", "demo")
    run.read("data/encode", "f0" * 32)
    run.trained("demo")
    run.close()
    client, version = register(root, voices[0], prompt, "line", run)
    registry.promote(client, version, GATES, figures(0.1))
    experiments = tracking.experiments(client, CONFIG)
    trained = runs.find_run(client, experiments, "line@champion")
    assert trained.info.run_id == run.id == runs.find_run(client, experiments, "line/1").info.run_id
    (data,) = lineage.ancestors(client, run.id)
    assert data.info.run_id == made.id
    (back,) = lineage.trainings_of(client, data)
    assert dict(lineage.tagged(back, lineage.MODEL)) == {"line.1": registry.voice_digest(voices[0])}
