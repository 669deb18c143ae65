"""similar: for every utterance the ones of its speaker that sound most like it."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Find for every utterance the similar.top_k most similar ones of its speaker (by MFCC statistics, or by speaker
embeddings). Training takes some of its prompts from them, so that the model learns to keep a manner of speaking."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.similar import similar

    manifest = Path("data/ingest/manifest.parquet")
    return similar(stage.params.similar, manifest, Path("data/encode"), stage.out("data/similar"))


STAGE = Stage(
    "similar", ABOUT, run, params=("similar",), reads=("data/ingest", "data/encode"), writes=("data/similar",)
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
