"""The fit_codec stage: a codec for the corpus, fitted (mel), fetched (the others) or a voice's, saved to one folder.

The codec learns from what later stages feed it: training recordings that passed the gates, trimmed, levelled and
resampled as the encode stage does it.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vall_e.audio import AudioError, load_prepared
from vall_e.codecs.base import Codec, load_codec
from vall_e.codecs.fit import fit_mel_codec
from vall_e.codecs.weights import read_description
from vall_e.config import Params
from vall_e.corpus.schema import UTTERANCES, read_rows
from vall_e.preparation import CodecConfig, EncodeConfig

_SIZES = ("sample_rate", "n_fft", "hop", "subframes", "n_mels", "levels", "codes", "code_dim", "width")
MAX_HOURS = 3.0  # of recordings held in memory; the codec hardly gains from more


def fit_codec(config: Params, manifest: Path, out_dir: Path, progress: bool = True) -> dict[str, Any]:
    """Fit or fetch the codec that ``codec.name`` names and save it, so that later stages need no network.

    Where ``codec.weights`` is the codec's folder of a voice (or ``models/codec`` of a run), that codec is taken as it
    is: only then do codes mean to a voice that is trained on what they meant before.

    Args:
        config: sections codec and encode (loudness) are read.
        manifest: table UTTERANCES.
        out_dir: gets config.json and the weights.
        progress: show bars on stderr.

    Returns:
        flat figures: ``sample_rate``, ``frame_rate``, ``levels``, ``codes``, ``bits_per_second``; of a fitted codec
        also ``kept``, ``unread`` (recordings that cannot be read, which ``encode`` makes rejects of), ``minutes`` and
        its last losses.

    Raises:
        FileNotFoundError: weights that are not there.
        ValueError: no training recording is left or can be read, or weights of other sizes than section codec says.
    """
    started = time.perf_counter()
    figures: dict[str, Any] = {}
    device = "cuda" if config.codec.device != "cpu" and torch.cuda.is_available() else "cpu"
    weights = config.codec.weights
    if weights is not None and is_codec(Path(weights)):
        codec = load_codec(config.codec, Path(weights), device)
        _check_sizes(config.codec, codec, weights)
        shutil.copytree(weights, out_dir, dirs_exist_ok=True)  # byte by byte, by which voices know their codec
    elif config.codec.name == "mel" and weights is not None:
        raise FileNotFoundError(f"codec.weights: {weights} is not the folder of a fitted codec, such as VOICE/codec")
    elif config.codec.name == "mel":
        rows = _training_rows(manifest, config.codec.mel.seed)
        rate = config.codec.mel.sample_rate
        wavs = _waves(tqdm(rows, unit="utt", desc="read", mininterval=1, disable=not progress), rate, config.encode)
        steps = tqdm(total=config.codec.mel.steps, unit="step", desc="fit_codec", mininterval=1, disable=not progress)
        with steps:
            codec, losses = fit_mel_codec(config.codec.mel, wavs, lambda step, values: _show(steps, values))
        figures = {
            "kept": len(wavs),
            "unread": len(rows) - len(wavs),
            "minutes": round(sum(map(len, wavs)) / rate / 60, 2),
        } | losses
        codec.save(Path(out_dir))
    else:
        codec = load_codec(config.codec, None, device)
        codec.save(Path(out_dir))
    bits = codec.frame_rate * codec.levels * float(np.log2(codec.codes))
    facts = {name: getattr(codec, name) for name in ("sample_rate", "frame_rate", "levels", "codes")}
    return figures | facts | {"bits_per_second": round(bits), "seconds": round(time.perf_counter() - started, 2)}


def is_codec(path: Path) -> bool:
    """``path`` is a folder that a codec's ``save`` wrote."""
    config = path / "config.json"
    return config.is_file() and "name" in read_description(config)


def _check_sizes(config: CodecConfig, codec: Codec, weights: str) -> None:
    """What ``codec.mel`` says about its sizes must be true of the fitted codec in ``weights``."""
    if config.name != "mel":
        return
    wrong = [
        f"codec.mel.{name} is {getattr(config.mel, name)} and that of {weights} {getattr(codec.config, name)}"
        for name in _SIZES
        if getattr(config.mel, name) != getattr(codec.config, name)
    ]
    if wrong:
        raise ValueError(f"codec.weights: {'; '.join(wrong)}: write its values into section codec.mel")


def _training_rows(manifest: Path, seed: int) -> list[dict[str, Any]]:
    """Training utterances: all of a small corpus, a random ``MAX_HOURS`` of a large one."""
    rows = read_rows(manifest, UTTERANCES, ["id", "path", "start", "end", "split", "seconds"])
    rows = sorted((row for row in rows if row["split"] == "train"), key=lambda row: row["id"])
    if not rows:
        raise ValueError(f"{manifest} has no training utterance: lower split.test_fraction")
    order = np.random.default_rng(seed).permutation(len(rows))
    total = np.cumsum([rows[i]["seconds"] for i in order])
    return [rows[i] for i in sorted(order[: int(np.searchsorted(total, MAX_HOURS * 3600)) + 1])]


def _waves(rows: Iterable[dict[str, Any]], rate: int, settings: EncodeConfig) -> list[np.ndarray]:
    """Utterances, float32 [N] each at ``rate`` Hz, without those that cannot be read, of which a warning tells."""
    wavs, faults = [], []
    for row in rows:
        try:
            wavs.append(load_prepared(row["path"], rate, settings, row["start"], row["end"]))
        except AudioError as error:
            faults.append(error)
    if faults:
        told = f"fit_codec: {len(faults)} recordings cannot be read, the first {faults[0]}"
        if not wavs:
            raise ValueError(told)
        warnings.warn(told, stacklevel=2)
    return wavs


def _show(bar: tqdm, values: dict[str, float]) -> None:
    bar.update()
    bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
