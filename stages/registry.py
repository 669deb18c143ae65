"""A voice into MLflow's registry: packed as ``pyfunc``, a version each, ``candidate`` until the gates make it
``champion``.

The model's folder in MLflow has the voice in ``artifacts/voice``, ready for ``train.init_from`` and ``vall-e synth``,
and the code of ``vall_e`` beside it. What was registered is told by the digest of its weights, settings and codec: the
same voice again is judged again, and registered once.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.gates import Figure, Verdict, judge
from stages.lineage import MODEL
from vall_e.corpus.work import digest_of
from vall_e.registry import GatesConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

    from vall_e.decoding import SamplingConfig

CANDIDATE, CHAMPION = "candidate", "champion"
DIGEST = "voice.digest"
_HERE = Path(__file__).resolve().parent
_DISTRIBUTION = "vall-e-workflow"
_NUMBER = r"-?[0-9.]+(?:e[+-]?[0-9]+)?"
_NO_INTERVAL = "no interval"
_FIGURE = re.compile(rf"(?P<value>{_NUMBER}) \[((?P<low>{_NUMBER}), (?P<high>{_NUMBER})|{_NO_INTERVAL})\]")


def voice_digest(folder: Path) -> str:
    """SHA-256 of what a voice is: all of its folder but ``run.json``, the note of who trained it."""
    parts = sorted(path for path in folder.iterdir() if path.name != "run.json")
    return hashlib.sha256("".join(f"{path.name}\0{digest_of(path)}\n" for path in parts).encode()).hexdigest()


def signature(sampling: SamplingConfig) -> ModelSignature:
    """Columns and parameters of ``stages.pyfunc``; the parameters' defaults are the voice's own settings."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    optional = {"prompt": "string", "language": "string", "speed": "double"}
    asked = [ColSpec("string", "text"), *(ColSpec(kind, name, required=False) for name, kind in optional.items())]
    given = {"audio": "string", "sample_rate": "long", "seconds": "double", "warnings": "string"}
    params = [
        ParamSpec("temperature", "double", float(sampling.ar.temperature)),
        ParamSpec("guidance", "double", float(sampling.guidance)),
        ParamSpec("candidates", "long", sampling.candidates),
        ParamSpec("max_seconds", "double", float(sampling.max_seconds)),
        ParamSpec("seed", "long", sampling.seed),
    ]
    answered = Schema([ColSpec(kind, name) for name, kind in given.items()])
    return ModelSignature(Schema(asked), answered, ParamSchema(params))


def pack(voice: Path, out: Path, text: str, prompt: Path) -> None:
    """Write the voice as an MLflow model.

    Args:
        voice: folder of the voice, whose name is ``voice``.
        out: folder to write; must not be there yet.
        text, prompt: the example that is shown with it: words, and the file of a recording.
    """
    import mlflow.pyfunc
    import pandas as pd

    from vall_e.models.checkpoint import load_config

    example = {"text": text, "prompt": base64.b64encode(prompt.read_bytes()).decode("ascii")}
    mlflow.pyfunc.save_model(
        path=str(out),
        python_model=str(_HERE / "pyfunc.py"),
        artifacts={"voice": str(voice.resolve())},
        code_paths=[str(_HERE.parent / "vall_e")],
        signature=signature(load_config(voice).sampling),
        input_example=pd.DataFrame([example]),
        pip_requirements=requirements(),
    )


def requirements() -> list[str]:
    """The project's own dependencies in the versions that are installed."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires(_DISTRIBUTION) or ()]
    names = [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return sorted(f"{name}=={metadata.version(name)}" for name in names)


def registered(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """The version of a model that holds exactly this voice."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST}` = '{digest}'", max_results=1)
    return client.get_model_version(name, found[0].version) if found else None


def champion_of(client: MlflowClient, name: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return None


def register(
    client: MlflowClient, name: str, run_id: str, voice: Path, text: str, prompt: Path, tags: Mapping[str, str]
) -> ModelVersion:
    """The version with this voice, made if there is none.

    A process killed on the way leaves at most a model that is not ready, which the next one removes.

    Args:
        run_id: the run that the model came from.
        text, prompt: see ``pack``.
        tags: of the version.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    digest = voice_digest(voice)
    if version := registered(client, name, digest):
        return version
    experiment = client.get_run(run_id).info.experiment_id
    for left in client.search_logged_models([experiment], filter_string=f"tags.`{DIGEST}` = '{digest}'"):
        if left.name == name:
            client.delete_logged_model(left.model_id)
    model = client.create_logged_model(experiment, name, run_id, {DIGEST: digest, **tags}, model_type="voice")
    with tempfile.TemporaryDirectory() as folder:
        pack(voice, Path(folder) / "model", text, prompt)
        client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    version = client.create_model_version(
        name, model.artifact_location, run_id, {DIGEST: digest, **tags}, model_id=model.model_id
    )
    client.set_tag(run_id, f"{MODEL}{name}.{version.version}", digest)
    return version


def promote(
    client: MlflowClient, version: ModelVersion, gates: GatesConfig, figures: Mapping[str, Figure]
) -> list[Verdict]:
    """Judge a version and give it its alias: ``champion`` where all gates pass, else ``candidate``. Tags say why.

    A champion that no longer passes (other gates, other figures) stays champion until another one takes its place.

    Returns:
        the answers of the gates.
    """
    name, champion = version.name, champion_of(client, version.name)
    number = str(version.version)  # a number in some stores
    is_champion = champion is not None and str(champion.version) == number
    verdicts = judge(gates, figures, None if is_champion or champion is None else figures_in(champion.tags))
    passed = all(verdict.passed for verdict in verdicts)
    tags = {f"gate.{v.gate}": f"{'passed' if v.passed else 'failed'}: {v.said}" for v in verdicts}
    tags |= {measure: as_tag(figure) for measure, figure in figures.items()}
    tags["gates"] = "passed" if passed else "failed"
    for key in version.tags:
        if key.startswith("gate.") and key not in tags:
            client.delete_model_version_tag(name, number, key)
    if passed and not is_champion and champion is not None:
        tags["champion.before"] = str(champion.version)
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    if passed:
        client.set_registered_model_alias(name, CHAMPION, number)
    if not passed and not is_champion:
        client.set_registered_model_alias(name, CANDIDATE, number)
    elif str(client.get_registered_model(name).aliases.get(CANDIDATE)) == number:
        client.delete_registered_model_alias(name, CANDIDATE)
    return verdicts


def as_tag(figure: Figure) -> str:
    """``0.17 [0.12, 0.22]``, or ``0.17 [no interval]`` of too few utterances."""
    ends = _NO_INTERVAL if figure["low"] is None else f"{figure['low']:.6g}, {figure['high']:.6g}"
    return f"{figure['value']:.6g} [{ends}]"


def figures_in(tags: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures that ``promote`` put into a version's tags; see ``as_tag``."""
    found = {measure: _FIGURE.fullmatch(str(value)) for measure, value in tags.items()}
    return {
        measure: {name: None if text is None else float(text) for name, text in match.groupdict().items()}
        for measure, match in found.items()
        if match
    }
