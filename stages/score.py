"""score: whose voice it is, and how clean it sounds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Compare the speaker of every wave of the evaluation with its prompt and with the other speakers, and predict its opinion
score (DNSMOS): what the model said, the codec's copy of the recording, and the recording. The figures go into the
model's training run in MLflow, too, as score.NAME."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.schema import MANIFEST, read_rows
    from vall_e.evaluation.score import score

    rows = read_rows("data/ingest/manifest.parquet", MANIFEST)
    sample_rate = json.loads(Path("data/encode/codec.json").read_text(encoding="utf-8"))["sample_rate"]
    figures = score(stage.params, "data/evaluate", rows, sample_rate, stage.out("data/score"), progress=True)
    stage.run.parent_metrics(figures, "score.")
    return figures


STAGE = Stage(
    "score",
    ABOUT,
    run,
    params=("score", "encode.loudness_lufs", "encode.trim_db", "encode.trim_margin_seconds", "evaluate.seed"),
    reads=("data/ingest", "data/encode", "data/evaluate", "models/voice"),
    writes=("data/score",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
