"""ingest: which recordings there are, whose, and what they say."""

from __future__ import annotations

import sys

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Make the manifest: one row per recording, of any length, with speaker, text and digest. Recordings come from a folder
or a manifest (ingest.source: folder; docs/recordings.md shows the layouts), or are spoken by espeak-ng (espeak).
What is too short, too quiet, clipped or unreadable is written to rejects.parquet with the rule that it broke."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.ingest import ingest

    return ingest(stage.params.ingest, stage.out("data/ingest"))


STAGE = Stage("ingest", ABOUT, run, params=("ingest",), writes=("data/ingest",), torch_seed=False)

if __name__ == "__main__":
    sys.exit(main(STAGE))
