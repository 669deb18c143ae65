"""phonemize: text to IPA phones, and the tokenizer that knows them."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Normalise each transcript (numbers as words, lower case) and turn it into IPA phones with espeak-ng's library: kanji
through kana, Mandarin with tones. The phones that occur become tokenizer.json. A text without phones, or in letters
that its language is not written in, goes to rejects.parquet. Finished shards wait in .work/ for the next run."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.phonemize import phonemize

    manifest = Path("data/quality/manifest.parquet")
    return phonemize(stage.params.phonemize, manifest, stage.out("data/phonemize"), stage.params.executor)


STAGE = Stage(
    "phonemize",
    ABOUT,
    run,
    params=("phonemize",),
    reads=("data/quality",),
    writes=("data/phonemize",),
    torch_seed=False,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
