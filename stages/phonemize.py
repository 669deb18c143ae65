"""phonemize: text to IPA phones, and the tokenizer that knows them."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Normalise each transcript (numbers as words, lower case) and turn it into IPA phones with espeak-ng's library. The
phones that occur become tokenizer.json. A text without phones goes to rejects.parquet."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.phonemize import phonemize

    manifest, transcripts = Path("data/ingest/manifest.parquet"), Path("data/transcribe/transcripts.parquet")
    return phonemize(stage.params.phonemize, manifest, transcripts, stage.out("data/phonemize"))


STAGE = Stage(
    "phonemize",
    ABOUT,
    run,
    params=("phonemize",),
    reads=("data/ingest", "data/transcribe"),
    writes=("data/phonemize",),
    torch_seed=False,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
