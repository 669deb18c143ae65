from __future__ import annotations

import io
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from pipelines import profile, repro
from vall_e.config import ConfigError, Section, load_params, merge
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

    raw = yaml.safe_load((project_root / "params.yaml").read_text())

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
    "name", ["digits", "ljspeech-smoke", "base-24khz", "micro", "reference-220m", "tiny-valle", "tiny-depth"]
)
def test_every_profile_is_valid_and_keeps_the_comments(project, name):
    text, params = repro.prepare(project, name, [])
    assert params.profile == name
    assert "# Every parameter of the pipeline." in text
    assert "# of the split" in text
    (project / "merged.yaml").write_text(text)
    assert load_params(project / "merged.yaml") == params
    assert params == load_params(project / "params.yaml", profile_files(project)[name])


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
    told = "no profile 'digit': there are demo, base-24khz, digits, ljspeech-smoke, micro, nar-len-220m, reference-"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits", "base-24khz"])
def test_dvc_reads_a_profile_as_we_do(project, name):
    """``dvc exp run -S`` parses with Hydra: its result must be the merged parameters."""
    from dvc.utils.hydra import apply_overrides

    out = io.StringIO()
    with redirect_stdout(out):
        assert profile.main([name]) == 0
    words = shlex.split(out.getvalue())
    assert words[::2] == ["-S"] * (len(words) // 2)
    apply_overrides("params.yaml", words[1::2])
    override = yaml.safe_load((project / "conf" / f"{name}.yaml").read_text())
    raw = yaml.safe_load(Path(profile.__file__).resolve().parent.parent.joinpath("params.yaml").read_text())
    assert yaml.safe_load((project / "params.yaml").read_text()) == merge(raw, override)


def test_help_is_quick_and_loads_neither_prefect_nor_dvc(project_root):
    script = (
        "import sys\nfrom pipelines import repro\n"
        "try: repro.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'prefect', 'dvc', 'torch', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=project_root, capture_output=True).returncode == 0
