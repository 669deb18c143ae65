"""``dvc.yaml`` says what the stages really use."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.test_architecture import ROOT, imports
from vall_e.config import Params, Section
from vall_e.corpus.work import code_of

NAMES = [
    "ingest", "transcribe", "quality", "phonemize", "fit_codec", "encode", "similar", "card", "train",
    "evaluate", "score", "register", "report",
]  # fmt: skip
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
# Values are in params.yaml, unfinished work is keyed by its own content, whoever does it, the bytes are the same, and
# an audition only speaks while a model trains: none of these shapes a result.
WORK = ("work", "executor", "workers", "ray_workers")
LEAVES = ("config", "decoding", "family", "fields", "preparation", "regimen", "registry")
NO_DEPENDENCY = {f"vall_e/{name}.py" for name in (*LEAVES, "evaluation/audition", *(f"corpus/{name}" for name in WORK))}
READERS = ("train", "evaluate", "score", "report")
DECODING = {"vall_e/audio.py", "vall_e/decoders.py"}
# Parameters that change no result: how many processes work, and where.
NO_PARAMETER = {
    "executor.kind",
    "executor.workers",
    "executor.retries",
    "executor.ray.address",
    "executor.ray.cpus_per_worker",
    "executor.ray.gpus_per_worker",
    "executor.ray.wait_seconds",
}


def _declared(kind: str, stage: str) -> list[str]:
    return [item if isinstance(item, str) else next(iter(item)) for item in PIPELINE[stage].get(kind, [])]


def _upstream(stage: str) -> set[str]:
    made = {out: name for name in NAMES for kind in ("outs", "metrics", "plots") for out in _declared(kind, name)}
    before = {made[dep] for dep in _declared("deps", stage) if dep in made}
    return before.union(*(_upstream(name) for name in before))


def _closure(start: Path) -> set[str]:
    """The library's files that a stage imports, directly or not through others that shape its result."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path in seen or path.relative_to(ROOT).as_posix() in NO_DEPENDENCY:
            continue
        seen.add(path)
        for name in imports(path):
            module = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            if name.startswith("vall_e.") and module.is_file():
                todo.append(module)
    return {path.relative_to(ROOT).as_posix() for path in seen}


def _keys(section: Section, path: str = "") -> list[str]:
    out = []
    for name in type(section).model_fields:
        value, key = getattr(section, name), f"{path}{name}"
        out += _keys(value, f"{key}.") if isinstance(value, Section) else [key]
    return out


def test_these_stages_and_no_other():
    assert sorted(PIPELINE) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_code_that_a_stage_imports_is_a_dependency(name):
    """Of the stage itself, for DVC compares what is in files: where a stage before it ends in the same bytes, it is
    skipped. Stages that only read what others made may leave the makers to those, but not how recordings are read."""
    code, own = _closure(ROOT / "stages" / f"{name}.py"), _declared("deps", name)
    if name in READERS:
        declared = [dep for stage in [name, *_upstream(name)] for dep in _declared("deps", stage)]
    else:
        declared = own
    missing = [file for file in sorted(code) if not any(file == d or file.startswith(f"{d}/") for d in declared)]
    assert missing == []
    assert {f"stages/{name}.py"} | (code & DECODING) <= set(own)


@pytest.mark.parametrize("name", NAMES)
def test_dependencies_exist(name):
    code = [dep for dep in _declared("deps", name) if dep.startswith(("vall_e", "stages"))]
    assert [dep for dep in code if not (ROOT / dep).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_table_and_dvc_agree(name):
    stage = import_module(f"stages.{name}").STAGE
    made = {out for other in NAMES for kind in ("outs", "plots") for out in _declared(kind, other)}
    reads = {dep for dep in _declared("deps", name) if dep in made}
    assert {"plots" if path.startswith("plots/") else path for path in reads} == set(stage.reads)
    outs = {
        path.split("/")[0] if path.startswith("plots/") else path
        for path in _declared("outs", name) + _declared("plots", name)
    }
    assert outs == set(stage.writes)
    assert PIPELINE[name]["cmd"] == f"python -m stages.{name}"
    assert f"metrics/{name}.json" in _declared("metrics", name)
    declared = _declared("params", name)
    for key in stage.params:
        assert any(d == key or key.startswith(f"{d}.") or d.startswith(f"{key}.") for d in declared), key
    for key in declared:
        assert any(key == p or key.startswith(f"{p}.") for p in stage.params) or key in ("profile", "tracking"), key


def test_every_declared_parameter_exists_and_every_parameter_is_declared():
    keys = _keys(Params())
    declared = {key for name in NAMES for key in _declared("params", name)}
    for key in declared:
        assert any(leaf == key or leaf.startswith(f"{key}.") for leaf in keys), f"{key} is not a parameter"
    unused = [leaf for leaf in keys if not any(leaf == key or leaf.startswith(f"{key}.") for key in declared)]
    assert set(unused) == NO_PARAMETER


def _stages_that_run_for(key: str) -> list[str]:
    direct = {name for name in NAMES if any(d == key or key.startswith(f"{d}.") for d in _declared("params", name))}
    return [name for name in NAMES if name in direct or direct & _upstream(name)]


@pytest.mark.parametrize(
    "key, first",
    [
        ("sampling.ar.temperature", "evaluate"),
        ("evaluate.utterances", "evaluate"),
        ("score.dnsmos", "score"),
        ("report.title", "report"),
        ("train.max_steps", "train"),
        ("model.dim", "train"),
        ("similar.top_k", "similar"),
    ],
)
def test_a_parameter_reruns_no_earlier_stage(key, first):
    """Late parameters are cheap to change: nothing before ``first`` depends on them."""
    later = NAMES[NAMES.index(first) :]
    assert _stages_that_run_for(key) == later


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_a_stage_reads_and_writes_without_loading_anything_heavy(name):
    script = (
        f"import sys\nfrom stages import {name}, runner\n"
        f"try: runner.main({name}.STAGE, ['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'mlflow', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"metrics/{name}.json" in done.stdout and "reads:" in done.stdout
    for path in import_module(f"stages.{name}").STAGE.writes:
        assert path in done.stdout


@pytest.mark.parametrize(
    ("stage", "made_by"),
    [
        ("transcribe", ("evaluation/asr", *(f"corpus/transcription/{n}" for n in ("listening", "aligning", "turns")))),
        ("screen", ("corpus/measures", "corpus/fingerprints", "evaluation/mos")),
        ("phonemize", ("text/normalize", "text/phonemes")),
        ("similar", ("audio", "evaluation/speaker")),
    ],
)
def test_unfinished_work_is_keyed_by_all_code_that_makes_it(stage, made_by):
    """Else a mended decoder would go on with what the broken one had heard."""
    module = import_module(f"vall_e.corpus.{stage}")
    keyed = [path.relative_to(ROOT).as_posix() for path in code_of(*module.CODE)]
    assert [file for file in keyed if not (ROOT / file).exists()] == []
    code = set().union(*(_closure(ROOT / "vall_e" / f"{name}.py") for name in made_by))
    assert [file for file in sorted(code) if not any(file == k or file.startswith(f"{k}/") for k in keyed)] == []
