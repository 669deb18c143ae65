"""register: the voice in MLflow's registry, champion where it passes the gates."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stages.runner import ROOT, Context, Figures, Stage, main, training_run_of

ABOUT = """\
Register the voice in MLflow, packed so that `mlflow models serve` speaks with it, as version of the model
registry.name. It is the model's candidate, and its champion where all of registry.gates pass; tags of the version say
why. A voice that is registered already is judged again, not registered twice. In a new MLflow store, which DVC does not
know of: dvc repro -f -s register"""


def run(stage: Context) -> Figures:
    from stages import registry, tracking
    from stages.gates import figures_of
    from vall_e.corpus.schema import RESULTS, read_rows
    from vall_e.registry import model_name

    params, voice = stage.params, Path("models/voice")
    evaluate, score = (json.loads(Path(f"metrics/{name}.json").read_text("utf-8")) for name in ("evaluate", "score"))
    example = min(read_rows("data/evaluate/results.parquet", RESULTS), key=lambda row: (len(row["text"]), row["id"]))
    client, _ = tracking.open_store(params.tracking, ROOT)
    name = params.registry.name or model_name(params.tracking.experiment, params.profile)
    trained = training_run_of(stage.stage)
    run_id = trained if tracking.exists(client, trained) else stage.run.id
    told = client.get_run(run_id).data.tags
    tags = {key: told[key] for key in ("mlflow.source.git.commit", "digest.dvc.lock") if key in told}
    prompt = Path("data/evaluate") / example["prompt"]
    version = registry.register(
        client, name, run_id, voice, example["text"], prompt, tags | {"profile": params.profile}
    )
    verdicts = registry.promote(client, version, params.registry.gates, figures_of(evaluate, score))
    failed = [f"{verdict.gate}: {verdict.said}" for verdict in verdicts if not verdict.passed]
    stage.run.tags({"model": f"{name}/{version.version}", "gates": "; ".join(failed) or "passed"}, parent=True)
    for line in failed:
        print(f"gate {line}")
    figures = {"model": f"models:/{name}/{version.version}", "version": int(version.version)}
    aliases = ", ".join(client.get_model_version(name, version.version).aliases)
    return figures | {"alias": aliases, "gates": {verdict.gate: int(verdict.passed) for verdict in verdicts}}


STAGE = Stage(
    "register",
    ABOUT,
    run,
    params=("registry", "profile", "tracking.uri", "tracking.experiment"),
    reads=("data/evaluate", "models/voice"),
    torch_seed=False,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
