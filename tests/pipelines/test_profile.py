from __future__ import annotations

import io
import json
import random
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from pipelines import profile, repro
from vall_e.config import ConfigError, Section, load_params, merge, read_yaml
from vall_e.profiles import profile_files


@pytest.fixture
def project(tmp_path, monkeypatch, project_root) -> Path:
    shutil.copy(project_root / "params.yaml", tmp_path)
    shutil.copytree(project_root / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _commit(folder: Path) -> None:
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@localhost"]
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    subprocess.run(["git", "add", "params.yaml"], cwd=folder, check=True)
    subprocess.run([*git, "commit", "-qm", "one"], cwd=folder, check=True)


def test_params_yaml_says_every_parameter(project_root):
    """A default that only config.py knows could change without DVC noticing."""

    def keys(value, path=""):
        if isinstance(value, Section):
            for name in type(value).model_fields:
                yield from keys(getattr(value, name), f"{path}.{name}" if path else name)
        else:
            yield path

    raw = read_yaml(project_root / "params.yaml")

    def there(path):
        value = raw
        for part in path.split("."):
            if part not in value:
                return False
            value = value[part]
        return True

    params = load_params(project_root / "params.yaml")
    join = {f"train.join.{name}" for name in ("min_clips", "max_clips", "gap_seconds", "curriculum_steps")}
    assert [path for path in keys(params) if path not in join and not there(path)] == []


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "papers",
        "finetune",
        "own",
        "ljspeech-smoke",
        "base-24khz",
        "micro",
        "reference-220m",
        "tiny-valle",
        "tiny-depth",
    ],
)
def test_every_profile_is_valid_and_keeps_the_comments(project, name):
    text, params = repro.prepare(project, name, [])
    assert params.profile == name
    assert "# Every parameter of the pipeline." in text
    assert "# share held out to watch training" in text
    (project / "merged.yaml").write_text(text)
    assert load_params(project / "merged.yaml") == params
    assert params == load_params(project / "params.yaml", profile_files(project)[name])
    assert params.train.max_steps <= 50 * params.train.samples.every  # what speaks does not train meanwhile


def test_own_recordings_are_not_heard_as_the_demos_digits(project):
    _, params = repro.prepare(project, "own", ["ingest.path=some_folder"])
    assert (params.ingest.source, params.ingest.path, params.ingest.layout) == ("folder", "some_folder", "auto")
    assert params.transcribe.prompt is None and params.evaluate.asr_prompt is None
    assert params.transcribe.max_cer <= type(params.transcribe)().max_cer
    assert params.transcribe.verify_fraction == 1.0 and params.transcribe.max_cer_letters > 0


def test_the_instruments_of_papers_go_over_any_profile(project):
    _, alone = repro.prepare(project, "digits", [])
    _, params = repro.prepare(project, "digits+papers", ["train.max_steps=7"])
    assert (params.profile, params.train.max_steps) == ("digits+papers", 7)
    assert (params.score.speaker_encoder, params.score.utmos) == ("wavlm-sv", "models/utmos.pt")
    assert params.evaluate.normaliser == "whisper" and params.model == alone.model
    with pytest.raises(ConfigError, match="no profile 'paper': there are demo, "):
        repro.prepare(project, "digits+paper", [])


def test_demo_leaves_the_file_as_it_is(project):
    before = (project / "params.yaml").read_text()
    text, _ = repro.prepare(project, "demo", [])
    assert text == before


def test_profiles_do_not_pile_up(project):
    _commit(project)
    _, fresh = repro.prepare(project, "micro", [])
    text, _ = repro.prepare(project, "digits", [])
    profile.write_params(project, text)
    assert repro.prepare(project, "micro", [])[1] == fresh
    _, params = repro.prepare(project, None, ["train.max_steps=7"])
    assert params.profile == "digits" and params.train.max_steps == 7


def test_settings_win_over_the_profile_and_are_checked(project):
    settings = ["train.max_steps=9", "encode.speeds=[0.8]", "train.join={min_clips: 1, max_clips: 2}"]
    _, params = repro.prepare(project, "digits", settings)
    assert (params.train.max_steps, params.encode.speeds) == (9, (0.8,))
    assert (params.train.join.min_clips, params.train.join.max_clips) == (1, 2)
    with pytest.raises(ConfigError, match="train.max_step: unknown key"):
        repro.prepare(project, None, ["train.max_step=9"])
    with pytest.raises(ConfigError, match="expected section.key=value"):
        repro.prepare(project, None, ["train.max_steps 9"])


def test_an_unknown_profile_names_those_there_are(project, capsys):
    assert repro.main(["--profile", "digit"]) == 1
    told = "no profile 'digit': there are demo, base-24khz, digits, finetune, ljspeech-smoke, micro, nar-len-220m, "
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits", "base-24khz"])
def test_dvc_reads_a_profile_as_we_do(project, project_root, name):
    """``dvc exp run -S`` parses with Hydra: its result must be the merged parameters."""
    from dvc.utils.hydra import apply_overrides

    out = io.StringIO()
    with redirect_stdout(out):
        assert profile.main([name]) == 0
    words = shlex.split(out.getvalue())
    assert words[::2] == ["-S"] * (len(words) // 2)
    apply_overrides("params.yaml", words[1::2])
    override = read_yaml(project / "conf" / f"{name}.yaml")
    raw = read_yaml(project_root / "params.yaml")
    assert read_yaml(project / "params.yaml") == merge(raw, override)


# What YAML 1.1 or a careless writer would take for something else.
_WORDS = [
    "off", "on", "yes", "no", "y", "null", "~", "true", "1e3", "1e-4", "007", "0o17", "12:30", "1_000", ".inf",
    "2026-01-01", "a: b", "a #b", "- a", "[a", "{a", "&a", "*a", "!a", "%a", "@a", "|", ">", "?", ":", "=", "<<", "",
    " a ", "it's", '"a"', "C:\\a", "\\", "a\\'", "a\nb", "\t", "Straße", "日本", "a,b", "a=b", "$a",
]  # fmt: skip


def _drawn(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("ab01.-+:#'\"\\,[]{}=&*!|>%@ \n~é", k=rng.randint(1, 8))) for _ in range(count)]


def test_every_text_arrives_as_what_it_is(project):
    """From the command line into the file, and from there to us and to DVC."""
    from dvc.utils.serialize import load_yaml

    before, path = (project / "params.yaml").read_text(), project / "params.yaml"
    for start in range(0, 500, 50):
        words = [*_WORDS, *_drawn(500)][start : start + 50]
        given = profile.parse_settings([f"profile={json.dumps(words[0])}", f"split.test_speakers={json.dumps(words)}"])
        assert given == {"profile": words[0], "split": {"test_speakers": words}}
        text, params = profile.overridden(before, given)
        profile.write_params(project, text)
        assert (params.profile, list(params.split.test_speakers)) == (words[0], words)
        assert load_params(path) == params
        assert load_yaml(str(path))["split"]["test_speakers"] == words


def test_words_and_numbers_of_a_setting_are_those_of_yaml_1_2(project):
    read = {
        "off": "off", "on": "on", "yes": "yes", "no": "no", "12:30": "12:30", "'a: b'": "a: b", "'007'": "007",
        "true": True, "false": False, "null": None, "": None, "1e3": 1000.0, "1e-4": 0.0001, "007": 7, "0o17": 15,
        "a: b": {"a": "b"}, "[off, 1]": ["off", 1],
    }  # fmt: skip
    for text, value in read.items():
        (got,) = profile.parse_settings([f"key={text}"]).values()
        assert (got, type(got)) == (value, type(value)), text
    text, params = repro.prepare(project, None, ["transcribe.align=off", "ingest.language=no", "train.lr=1e-3"])
    assert (params.transcribe.align, params.ingest.language, params.train.lr) == ("off", "no", 0.001)
    profile.write_params(project, text)
    assert load_params(project / "params.yaml") == params
    with pytest.raises(ConfigError, match=r"test_speakers.0: is a text: put it in quotes \(got 7\)"):
        repro.prepare(project, None, ["split.test_speakers=[007]"])
    with pytest.raises(ConfigError, match="a: 1, a: 2"):
        repro.prepare(project, None, ["train.join={a: 1, a: 2}"])


def test_dvc_sets_texts_as_we_do(project):
    from dvc.utils.hydra import apply_overrides

    words = [*_WORDS, *_drawn(100)]
    apply_overrides("params.yaml", profile.settings_for_dvc({"profile": words[0], "split": {"test_speakers": words}}))
    params = load_params(project / "params.yaml")
    assert (params.profile, list(params.split.test_speakers)) == (words[0], words)


def test_help_is_quick_and_loads_neither_prefect_nor_dvc(project_root):
    script = (
        "import sys\nfrom pipelines import repro\n"
        "try: repro.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'prefect', 'dvc', 'torch', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=project_root, capture_output=True).returncode == 0
