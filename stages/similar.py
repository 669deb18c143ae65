"""similar: for every utterance the ones of its speaker that sound most like it."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Find for every utterance the similar.top_k most similar ones of its speaker (by MFCC statistics, by speaker embeddings,
or by what the codes of data/encode stand for). Training takes some of its prompts from them, so that the model learns
to keep a manner of speaking. Finished shards of features wait in .work/ for the next run."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.similar import similar

    settings, tables = stage.params.similar, None
    if settings.feature == "codes":
        from vall_e.models.similarity import code_tables

        voice = None if settings.voice is None else Path(settings.voice)
        if voice is not None and voice.resolve() == Path("models/voice").resolve():
            raise ValueError("similar.voice: the train stage replaces models/voice: copy that voice and name the copy")
        tables = code_tables(voice, stage.params.codec, Path("models/codec"))
    manifest, codes = Path("data/quality/manifest.parquet"), Path("data/encode")
    return similar(settings, manifest, codes, stage.out("data/similar"), stage.params.executor, tables=tables)


STAGE = Stage(
    "similar",
    ABOUT,
    run,
    params=("codec.name", "similar"),
    reads=("data/quality", "data/encode", "models/codec"),
    writes=("data/similar",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
