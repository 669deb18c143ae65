"""The fit_codec stage: a codec for the corpus, fitted (mel) or fetched (encodec, dac), saved to one folder.

The codec learns from what later stages feed it: training recordings that passed the gates, trimmed, levelled and
resampled as the encode stage does it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vall_e.audio import load_prepared
from vall_e.codecs.base import load_codec
from vall_e.codecs.fit import fit_mel_codec
from vall_e.config import Params
from vall_e.corpus.schema import MANIFEST, TRANSCRIPTS, read_rows

MAX_HOURS = 3.0  # of recordings held in memory; the codec hardly gains from more


def fit_codec(
    config: Params, manifest: Path, transcripts: Path, out_dir: Path, progress: bool = True
) -> dict[str, Any]:
    """Fit or fetch the codec that ``codec.name`` names and save it, so that later stages need no network.

    Args:
        config: sections codec and encode (loudness, trimming) are read.
        manifest: table MANIFEST.
        transcripts: table TRANSCRIPTS; utterances without a row there were rejected and teach nothing.
        out_dir: gets config.json and the weights.
        progress: show bars on stderr.

    Returns:
        flat figures: ``sample_rate``, ``frame_rate``, ``levels``, ``codes``, ``bits_per_second``; of a fitted codec
        also ``kept``, ``minutes`` and its last losses.

    Raises:
        FileNotFoundError: encodec or dac weights that are not there.
        ValueError: no training recording is left.
    """
    started = time.perf_counter()
    figures: dict[str, Any] = {}
    if config.codec.name == "mel":
        rows = _training_rows(manifest, transcripts, config.codec.mel.seed)
        rate = config.codec.mel.sample_rate
        bar = tqdm(rows, unit="utt", desc="read", mininterval=1, disable=not progress)
        wavs = [load_prepared(row["path"], rate, config.encode) for row in bar]
        steps = tqdm(total=config.codec.mel.steps, unit="step", desc="fit_codec", mininterval=1, disable=not progress)
        with steps:
            codec, losses = fit_mel_codec(config.codec.mel, wavs, lambda step, values: _show(steps, values))
        figures = {"kept": len(wavs), "minutes": round(sum(map(len, wavs)) / rate / 60, 2)} | losses
    else:
        device = "cuda" if config.codec.device != "cpu" and torch.cuda.is_available() else "cpu"
        codec = load_codec(config.codec, None, device)
    codec.save(Path(out_dir))
    bits = codec.frame_rate * codec.levels * float(np.log2(codec.codes))
    facts = {name: getattr(codec, name) for name in ("sample_rate", "frame_rate", "levels", "codes")}
    return figures | facts | {"bits_per_second": round(bits), "seconds": round(time.perf_counter() - started, 2)}


def _training_rows(manifest: Path, transcripts: Path, seed: int) -> list[dict[str, Any]]:
    """Training utterances with a transcript: all of a small corpus, a random ``MAX_HOURS`` of a large one."""
    spoken = {row["id"] for row in read_rows(transcripts, TRANSCRIPTS, ["id"])}
    rows = read_rows(manifest, MANIFEST, ["id", "path", "split", "seconds"])
    rows = sorted((row for row in rows if row["split"] == "train" and row["id"] in spoken), key=lambda row: row["id"])
    if not rows:
        raise ValueError(f"{manifest} and {transcripts} leave no training recording: lower ingest.test_fraction")
    order = np.random.default_rng(seed).permutation(len(rows))
    total = np.cumsum([rows[i]["seconds"] for i in order])
    return [rows[i] for i in sorted(order[: int(np.searchsorted(total, MAX_HOURS * 3600)) + 1])]


def _show(bar: tqdm, values: dict[str, float]) -> None:
    bar.update()
    bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
