"""train: the voice model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runner import Context, Figures, Stage, main
from vall_e.config import Params

if TYPE_CHECKING:
    from vall_e.evaluation.audition import Audition

ABOUT = """\
Train the model on the codes: text and a prompt of the speaker in, the codes of the utterance out. Checkpoints stay in
.work/, so a killed run goes on where it was. models/voice holds all that speaking needs: weights, parameters, tokenizer
and codec, and run.json with the id of this training's MLflow run, into which evaluate, score and report log as well.
While it trains, live/ holds its curves so far (dvc plots show) and samples (train.samples)."""


LIVE = Path("live")  # curves and samples of the training under way: no out, so that they are there before it ends


def run(stage: Context) -> Figures:
    from stages.preflight import at_the_start, with_voice
    from vall_e.training.run import train

    out = stage.out("models/voice")
    run_id = stage.run.id  # a store that does not answer is found out now, not after the training
    places = (Path("."), out, stage.out("plots") / "train.csv", Path(".work"))
    params = with_voice(stage.params)
    if stage.params.train.init_from is not None:
        stage.run.tags({"init_from": stage.params.train.init_from, "init_from.folder": params.train.init_from})
    at_the_start(params)
    figures = train(params, *places, log=stage.run.log, live=LIVE, show=_audition(stage))
    stage.run.tags({"training_run": run_id})
    stage.run.trained(stage.params.profile)
    record = {"run_id": run_id, "experiment": stage.params.tracking.experiment, "profile": stage.params.profile}
    (out / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return figures


def follow(params: Params) -> None:
    from stages.preflight import with_voice
    from vall_e.training.run import train

    train(with_voice(params), Path("."), Path("models/voice"), Path("plots/train.csv"), Path(".work"))


def _audition(stage: Context) -> Audition | None:
    """Who speaks while it trains, where somebody wants that."""
    if stage.params.train.samples is None:
        return None
    from vall_e.codecs.base import load_codec
    from vall_e.evaluation.audition import Audition
    from vall_e.text.tokenizer import Tokenizer

    codec = load_codec(stage.params.codec, Path("models/codec"))
    tokenizer = Tokenizer.load(Path("data/phonemize/tokenizer.json"))
    return Audition(stage.params, codec, tokenizer, lambda folder: stage.run.artifact(folder, f"samples/{folder.name}"))


STAGE = Stage(
    "train",
    ABOUT,
    run,
    params=("model", "train", "codec.name", "split.seed", "split.test_fraction"),
    reads=("data/encode", "data/similar", "data/phonemize", "models/codec"),
    writes=("models/voice", "plots"),
    follow=follow,
    artifacts=("plots",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
