"""Whose voice is it, and how good does it sound: speaker similarity and DNSMOS of what ``evaluate`` left."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from vall_e import audio
from vall_e.config import Params
from vall_e.corpus.schema import RESULTS, SCORES, read_rows, write_table
from vall_e.evaluation.intervals import bootstrap_mean
from vall_e.evaluation.run import KINDS
from vall_e.evaluation.speaker import centroids, nearest, similarity_to_others
from vall_e.preparation import EncodeConfig

_CENTROID_SECONDS = 20.0
_CLIP_SECONDS = 3.0
_CLIPS = 32  # waves held in memory at a time

Row = Mapping[str, Any]


class Encoder(Protocol):
    """What of ``speaker.SpeakerEncoder`` is used here."""

    def embed(self, clips: Sequence[tuple[np.ndarray, int]]) -> np.ndarray: ...


class Judge(Protocol):
    """What of ``mos.Dnsmos`` is used here."""

    def score(self, wav: np.ndarray, rate: int) -> float | None: ...


def score(
    config: Params,
    evaluate_dir: str | Path,
    rows: Iterable[Row],
    sample_rate: int,
    out_dir: str | Path,
    *,
    progress: bool = False,
    encoder: Encoder | None = None,
    mos: Judge | None = None,
) -> dict[str, Any]:
    """Score every wave of an evaluation.

    Args:
        config: sections score, encode and evaluate (seed) are read.
        evaluate_dir: out folder of the evaluate stage.
        rows: the manifest's rows; each speaker's held-out recordings make the speaker's centroid.
        sample_rate: Hz at which the recordings are prepared: the codec's, so that bandwidth tells no voices apart.
        out_dir: gets ``scores.parquet`` (schema SCORES) and ``matrix.json``, the model's mean similarity
            of each prompt's speaker to each centroid.
        progress: show bars on stderr.
        encoder, mos: by default Resemblyzer and, with ``score.dnsmos``, DNSMOS.

    Returns:
        ``similarity``, ``similarity_others`` and ``dnsmos`` {kind: {value, low, high} or None};
        ``speaker_top1`` {kind: share of outputs whose nearest centroid is the prompt's speaker's}.
    """
    evaluate_dir, out_dir = Path(evaluate_dir), Path(out_dir)
    results = read_rows(evaluate_dir / "results.parquet", RESULTS)
    if encoder is None:
        from vall_e.evaluation.speaker import SpeakerEncoder

        encoder = SpeakerEncoder()
    if mos is None and config.score.dnsmos:
        from vall_e.evaluation.mos import Dnsmos

        mos = Dnsmos()
    names, means = speaker_centroids(rows, config.encode, encoder, sample_rate, progress)
    prompts = sorted({row["prompt"] for row in results})
    voices = dict(zip(prompts, _embed_files(encoder, evaluate_dir, prompts, "prompts", progress), strict=True))
    embeddings = _embed_files(encoder, evaluate_dir, [row["audio"] for row in results], "voices", progress)
    speakers = [row["speaker"] for row in results]
    cosines = np.sum(embeddings * np.stack([voices[row["prompt"]] for row in results]), axis=1)
    others = similarity_to_others(embeddings, speakers, names, means)
    who = nearest(embeddings, names, means)
    judged = spread({row["id"] for row in results}, config.score.dnsmos_utterances) if mos is not None else set()
    scores = []
    for index, row in enumerate(
        tqdm(results, desc="DNSMOS", unit="utt", mininterval=1.0, disable=not progress or not judged)
    ):
        quality = mos.score(*audio.load(evaluate_dir / row["audio"])) if row["id"] in judged else None
        scores.append(
            {
                "id": row["id"],
                "kind": row["kind"],
                "speaker": row["speaker"],
                "similarity": float(cosines[index]),
                "nearest": who[index],
                "similarity_others": float(others[index]),
                "dnsmos": quality,
            }
        )
    write_table(scores, SCORES, out_dir / "scores.parquet")
    _write_matrix(embeddings, results, names, means, out_dir / "matrix.json")
    return {"kept": len(results), **summarise(scores, config.score.bootstrap, config.evaluate.seed)}


def spread(ids: Iterable[str], count: int) -> set[str]:
    """``count`` of the ids, chosen by their hashes and so whatever their order; all where there are fewer."""
    return set(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


def _embed_files(encoder: Encoder, folder: Path, names: Sequence[str], what: str, progress: bool) -> np.ndarray:
    parts = []
    with tqdm(total=len(names), desc=what, unit="utt", mininterval=1.0, disable=not progress) as bar:
        for start in range(0, len(names), _CLIPS):
            part = names[start : start + _CLIPS]
            parts.append(encoder.embed([audio.load(folder / name) for name in part]))
            bar.update(len(part))
    return np.concatenate(parts)


def speaker_centroids(
    rows: Iterable[Row], config: EncodeConfig, encoder: Encoder, sample_rate: int, progress: bool = False
) -> tuple[list[str], np.ndarray]:
    """Each speaker's mean voice, from about 20 s of recordings that training never saw.

    Those of split val come first and those of split test, among which the prompts are, only fill up. Short clips are
    joined to about 3 s: an embedding of half a word says little about its speaker.

    Returns:
        S names and float32 [S, 256].
    """
    held: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["split"] in ("val", "test"):
            held[row["speaker"]].append(row)
    clips: list[tuple[np.ndarray, int]] = []
    owners: list[str] = []
    embeddings: list[np.ndarray] = []
    for speaker in tqdm(sorted(held), desc="centroids", unit="speaker", mininterval=1.0, disable=not progress):
        waiting: list[np.ndarray] = []
        total = 0.0
        for row in sorted(
            held[speaker], key=lambda r: (r["split"] != "val", hashlib.sha256(r["id"].encode()).digest())
        ):
            if total >= _CENTROID_SECONDS:
                break
            waiting.append(audio.load_prepared(row["path"], sample_rate, config))
            total += waiting[-1].size / sample_rate
            if sum(w.size for w in waiting) >= _CLIP_SECONDS * sample_rate:
                clips.append((np.concatenate(waiting), sample_rate))
                waiting = []
        # A short rest is a clip only where it is all there is.
        if waiting and total < 2 * _CLIP_SECONDS:
            clips.append((np.concatenate(waiting), sample_rate))
        embeddings.append(encoder.embed(clips))
        owners += [speaker] * len(clips)
        clips = []
    if not owners:
        raise ValueError("no speaker has a held-out recording: raise ingest.val_fraction or ingest.test_fraction")
    return centroids(np.concatenate(embeddings), owners)


def _write_matrix(
    embeddings: np.ndarray, results: Sequence[Row], names: Sequence[str], means: np.ndarray, path: Path
) -> None:
    model = [i for i, row in enumerate(results) if row["kind"] == "model"]
    cosines = embeddings[model] @ means.T
    owner = np.asarray([results[i]["speaker"] for i in model])
    rows = sorted(set(owner))
    values = [[round(float(v), 4) for v in cosines[owner == name].mean(axis=0)] for name in rows]
    path.write_text(
        json.dumps({"speakers": rows, "centroids": list(names), "values": values}, ensure_ascii=False) + "\n", "utf-8"
    )


def summarise(scores: Sequence[Row], resamples: int, seed: int) -> dict[str, Any]:
    """The metrics of SCORES rows, as ``score`` returns them."""

    def interval(kind: str, column: str) -> dict[str, float] | None:
        values = [row[column] for row in sorted(scores, key=lambda r: r["id"]) if row["kind"] == kind]
        values = [v for v in values if v is not None and not math.isnan(v)]
        return bootstrap_mean(values, resamples, seed).as_dict() if values else None

    metrics: dict[str, Any] = {
        column: {kind: interval(kind, column) for kind in KINDS}
        for column in ("similarity", "similarity_others", "dnsmos")
    }
    right = [{"id": r["id"], "kind": r["kind"], "right": float(r["nearest"] == r["speaker"])} for r in scores]
    metrics["speaker_top1"] = {}
    for kind in KINDS:
        hits = [r["right"] for r in sorted(right, key=lambda r: r["id"]) if r["kind"] == kind]
        metrics["speaker_top1"][kind] = bootstrap_mean(hits, resamples, seed).as_dict() if hits else None
    return metrics
