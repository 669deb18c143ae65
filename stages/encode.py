"""encode: recordings to codes."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Level and resample every recording that has phones, and write its codes with text, phones, speaker and split into
Parquet shards of encode.shard_size utterances. encode.speeds adds copies of the training utterances at other speeds,
encode.mixtures every clip in noise and under another voice (mixtures-*.parquet, for the tasks ns, sr, nse and tse).
Finished shards wait in .work/, so a killed run goes on where it was."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.encode import encode

    manifest, phones = Path("data/quality/manifest.parquet"), Path("data/phonemize/phones.parquet")
    return encode(stage.params, manifest, phones, Path("models/codec"), stage.out("data/encode"))


STAGE = Stage(
    "encode",
    ABOUT,
    run,
    params=(
        "codec.name",
        "encode.shard_size",
        "encode.batch_seconds",
        "encode.loudness_lufs",
        "encode.speeds",
        "encode.mixtures",
        "encode.max_reject_rate",
    ),
    reads=("data/quality", "data/phonemize", "models/codec"),
    writes=("data/encode",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
