"""train: the voice model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Train the model on the codes: text and a prompt of the speaker in, the codes of the utterance out. Checkpoints stay in
.work/, so a killed run goes on where it was. models/voice holds all that speaking needs: weights, parameters, tokenizer
and codec, and run.json with the id of this training's MLflow run, into which evaluate, score and report log as well."""


def run(stage: Context) -> Figures:
    from vall_e.training.run import train

    out = stage.out("models/voice")
    run_id = stage.run.id  # a store that does not answer is found out now, not after the training
    figures = train(stage.params, Path("."), out, stage.out("plots") / "train.csv", Path(".work"), log=stage.run.log)
    stage.run.tags({"training_run": run_id})
    record = {"run_id": run_id, "experiment": stage.params.tracking.experiment, "profile": stage.params.profile}
    (out / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return figures


STAGE = Stage(
    "train",
    ABOUT,
    run,
    params=("model", "train", "codec.name", "ingest.seed", "ingest.test_fraction"),
    reads=("data/encode", "data/similar", "data/phonemize", "models/codec"),
    writes=("models/voice", "plots"),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
