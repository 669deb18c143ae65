"""fit_codec: the codec that turns recordings into codes and back."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Make models/codec. The bundled mel codec (codec.name: mel) is trained on the training recordings: log-mel frames,
residual vector quantisation, a decoder for the magnitudes and Griffin-Lim for the phase. EnCodec, DAC and NeMo's codec
come with weights: from codec.weights, or from where their authors put them; codec.decoder: vocos likewise."""


def run(stage: Context) -> Figures:
    from vall_e.corpus.fit_codec import fit_codec

    return fit_codec(stage.params, Path("data/quality/manifest.parquet"), stage.out("models/codec"))


STAGE = Stage(
    "fit_codec",
    ABOUT,
    run,
    params=("codec", "encode.loudness_lufs"),
    reads=("data/quality",),
    writes=("models/codec",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
