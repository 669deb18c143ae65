"""quality: which utterances are good enough to learn from, and which are kept for testing."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Cut the silence at the edges of every utterance, measure what is left (level, clipping, noise, bandwidth, fingerprint),
drop what a threshold of section quality does not allow and what is there twice, and split the rest for training,
validation and test. measures.parquet has all figures of all utterances, rejects.parquet rule, value and threshold of
each that was dropped, waterfall.png what each rule cost. Measures wait in .work/: another threshold measures nothing
again."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.screen import screen

    manifest, transcripts = Path("data/ingest/manifest.parquet"), Path("data/transcribe/transcripts.parquet")
    return screen(stage.params, manifest, transcripts, stage.out("data/quality"))


STAGE = Stage(
    "quality",
    ABOUT,
    run,
    params=("quality", "split", "encode.trim_db", "encode.trim_margin_seconds", "ingest.path", "ingest.source"),
    reads=("data/ingest", "data/transcribe"),
    writes=("data/quality",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
