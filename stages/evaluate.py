"""evaluate: the model says the test set, a recogniser listens."""

from __future__ import annotations

import sys

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Speak texts that training never saw, each with a prompt that it never saw, and count what a recogniser gets wrong:
words, characters, phones. The same is done with the codec's copy of the recording and with the recording, so that a
figure means something. The figures go into the model's training run in MLflow, too, as eval.NAME."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.encode import load_codes
    from vall_e.corpus.schema import MANIFEST, read_rows
    from vall_e.evaluation.run import evaluate
    from vall_e.generation.synthesize import Voice

    rows = read_rows("data/ingest/manifest.parquet", MANIFEST)
    codes = load_codes("data/encode", ["source", "text"])
    texts = dict(zip(codes["source"].to_pylist(), codes["text"].to_pylist(), strict=True))
    voice = Voice.load("models/voice", stage.params.train.device)
    figures = evaluate(stage.params, voice, rows, texts, stage.out("data/evaluate"), progress=True)
    stage.run.parent_metrics(figures, "eval.")
    return figures


STAGE = Stage(
    "evaluate",
    ABOUT,
    run,
    params=(
        "evaluate",
        "sampling",
        "encode.loudness_lufs",
        "encode.trim_db",
        "encode.trim_margin_seconds",
        "ingest.seed",
        "ingest.split_by",
        "ingest.test_fraction",
        "train.join",
        "train.device",
    ),
    reads=("data/ingest", "data/encode", "models/voice"),
    writes=("data/evaluate",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
