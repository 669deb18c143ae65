"""transcribe: words for recordings without a text, and a check of those that came with one."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Recognise what has no transcript (WhisperX: voice activity detection and batched Whisper, times of words), and check
given transcripts against the recogniser: a character error rate above transcribe.max_cer means that text and recording
do not belong together. Recordings longer than transcribe.max_seconds are cut into utterances in pauses between words,
their given text with them. Texts that a recogniser made up, and whatever else is dropped, go to rejects.parquet with
rule, value and threshold."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.transcribe import transcribe

    manifest, out = Path("data/ingest/manifest.parquet"), stage.out("data/transcribe")
    return transcribe(stage.params.transcribe, manifest, out, Path(".work"), stage.params.executor)


STAGE = Stage("transcribe", ABOUT, run, ("transcribe",), reads=("data/ingest",), writes=("data/transcribe",))

if __name__ == "__main__":
    sys.exit(main(STAGE))
