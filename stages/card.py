"""card: what the corpus holds, as a page."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Write the data card, index.html and card.md: hours by speaker, language and split, histograms of what was measured, what
each rule of each stage dropped, the licence that card.licence states, and the hashes of the tables."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.card import make_card

    return make_card(stage.params.card, MANIFEST, Path("data"), stage.out("data/card"))


MANIFEST = Path("data/quality/manifest.parquet")
READS = ("data/ingest", "data/transcribe", "data/quality", "data/phonemize", "data/encode", "data/similar")
STAGE = Stage("card", ABOUT, run, ("card",), READS, ("data/card",), artifacts=("data/card",), torch_seed=False)

if __name__ == "__main__":
    sys.exit(main(STAGE))
