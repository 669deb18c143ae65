"""score: whose voice it is, and how clean it sounds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Compare the speaker of every wave of the evaluation with its prompt, its recording and the other speakers, predict its
opinion score (DNSMOS, UTMOS), and measure how far its spectrum, pitch and duration are from the recording's: what the
model said, the codec's copy of the recording, and the recording. The figures go into the model's training run in
MLflow, too, as score.NAME."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.schema import UTTERANCES, read_rows
    from vall_e.evaluation.score import score

    rows = read_rows("data/quality/manifest.parquet", UTTERANCES)
    sample_rate = json.loads(Path("data/encode/codec.json").read_text(encoding="utf-8"))["sample_rate"]
    figures = score(stage.params, "data/evaluate", rows, sample_rate, stage.out("data/score"), progress=True)
    stage.run.parent_metrics(figures, "score.")
    return figures


STAGE = Stage(
    "score",
    ABOUT,
    run,
    params=("score", "encode.loudness_lufs", "evaluate.seed", "evaluate.testset"),
    reads=("data/quality", "data/encode", "data/evaluate", "models/voice"),
    writes=("data/score",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
