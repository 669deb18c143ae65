"""transcribe: words for recordings without a text, and a check of those that came with one."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Recognise what has no transcript (WhisperX: voice activity detection and batched Whisper), and check given transcripts
against the recogniser: a character error rate above transcribe.max_cer means that text and recording do not belong
together, and the utterance goes to rejects.parquet. transcribe.verify_fraction is the share that is checked."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.transcribe import transcribe

    manifest = Path("data/ingest/manifest.parquet")
    return transcribe(stage.params.transcribe, manifest, stage.out("data/transcribe"), Path(".work"))


STAGE = Stage("transcribe", ABOUT, run, ("transcribe",), reads=("data/ingest",), writes=("data/transcribe",))

if __name__ == "__main__":
    sys.exit(main(STAGE))
