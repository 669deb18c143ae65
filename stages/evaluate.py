"""evaluate: the model says the test set, a recogniser listens."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Speak texts that training never saw, each with a prompt that it never saw, and count what a recogniser gets wrong:
words, characters, phones. The same is done with the codec's copy of the recording and with the recording, so that a
figure means something. The figures go into the model's training run in MLflow, too, as eval.NAME. A run that is killed
goes on behind its last whole batch.

evaluate.testset names a list of others instead (docs/evaluation.md). DVC does not look into it nor into its recordings:
after changing them, `dvc repro -f -s evaluate`."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.encode import load_codes
    from vall_e.corpus.schema import UTTERANCES, read_rows
    from vall_e.corpus.work import WorkFolder, code_of, digest_of, key_of
    from vall_e.evaluation.lists import digests_of
    from vall_e.evaluation.run import CODE, evaluate
    from vall_e.generation.synthesize import Voice

    testset = stage.params.evaluate.testset
    listed = [] if testset is None else digests_of(testset, digest_of)
    used = stage.params.model_dump(mode="json", include={"evaluate", "sampling", "encode", "split", "phonemize"})
    join = stage.params.train.join
    key = key_of(
        *map(Path, STAGE.reads),
        *listed,
        params=used | {"join": join and join.model_dump(mode="json"), "device": stage.params.train.device},
        code=code_of(*CODE),
    )
    rows = read_rows("data/quality/manifest.parquet", UTTERANCES)
    codes = load_codes("data/encode", ["source", "text"])
    texts = dict(zip(codes["source"].to_pylist(), codes["text"].to_pylist(), strict=True))
    voice = Voice.load("models/voice", stage.params.train.device)
    work = WorkFolder("evaluate", key)
    figures = evaluate(stage.params, voice, rows, texts, stage.out("data/evaluate"), progress=True, work=work)
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
        "phonemize.language",
        "split.by",
        "split.seed",
        "split.test_fraction",
        "train.join",
        "train.device",
    ),
    reads=("data/quality", "data/encode", "models/voice"),
    writes=("data/evaluate",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
