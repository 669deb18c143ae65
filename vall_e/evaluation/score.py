"""Whose voice is it, how good does it sound, how near is it to the recording: what ``evaluate`` left, measured.

Dimensions: N waves, S speakers, D the width of a speaker embedding.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from vall_e import audio
from vall_e.config import Params
from vall_e.corpus.schema import RESULTS, SCORES, read_rows, write_table
from vall_e.evaluation.acoustics import Sound, analyse, compare, pitch_of
from vall_e.evaluation.intervals import bootstrap_mean
from vall_e.evaluation.run import GROUPS
from vall_e.evaluation.speaker import centroids, nearest, similarity_to_others
from vall_e.evaluation.speaking import KINDS
from vall_e.evaluation.verification import Encoder, load_encoder
from vall_e.preparation import EncodeConfig

_CENTROID_SECONDS = 20.0
_CLIP_SECONDS = 3.0
_CLIPS = 32  # waves held in memory at a time
MEASURES = (
    "similarity",
    "similarity_resynthesis",
    "similarity_recording",
    "similarity_others",
    "dnsmos",
    "utmos",
    "mcd",
    "duration_ratio",
    "f0_mean",
    "f0_std",
    "voiced",
    "f0_rmse",
    "f0_correlation",
)
_ACOUSTICS = MEASURES[MEASURES.index("mcd") :]
_BY_GROUP = ("similarity", "similarity_recording", "dnsmos", "mcd")

Row = Mapping[str, Any]


class Judge(Protocol):
    """What of ``mos.Dnsmos`` and ``utmos.Utmos`` is used here."""

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
    judges: Mapping[str, Judge] | None = None,
) -> dict[str, Any]:
    """Score every wave of an evaluation.

    Args:
        config: sections score, encode and evaluate (seed, testset) are read.
        evaluate_dir: out folder of the evaluate stage.
        rows: the manifest's rows; each speaker's held-out recordings make the speaker's centroid. With
            ``evaluate.testset`` the prompts make it, for the list's speakers have nothing else.
        sample_rate: Hz at which the recordings are prepared: the codec's, so that bandwidth tells no voices apart.
        out_dir: gets ``scores.parquet`` (schema SCORES) and ``matrix.json``, the model's mean similarity
            of each prompt's speaker to each centroid.
        progress: show bars on stderr.
        encoder: by default ``score.speaker_encoder``.
        judges: column (dnsmos, utmos) → judge; by default those that section score asks for.

    Returns:
        Each of ``MEASURES`` {kind: {value, low, high} or None}; ``speaker_top1`` {kind: share of outputs whose nearest
        centroid is the prompt's speaker's}; for each of ``run.GROUPS`` that there is, some of these;
        ``speaker_encoder``.

    Raises:
        EncoderError, UtmosError: a model that section score names is not there.
    """
    evaluate_dir, out_dir = Path(evaluate_dir), Path(out_dir)
    results = read_rows(evaluate_dir / "results.parquet", RESULTS)
    settings = config.score
    if encoder is None:
        encoder = load_encoder(settings.speaker_encoder, settings.speaker_weights, settings.device)
    judges = _judges(config) if judges is None else judges
    prompts = sorted({row["prompt"]: row["speaker"] for row in results}.items())
    heard = _embed_files(encoder, evaluate_dir, [name for name, _ in prompts], "prompts", progress)
    if config.evaluate.testset is None:
        names, means = speaker_centroids(rows, config.encode, encoder, sample_rate, progress)
    else:
        names, means = centroids(heard, [speaker for _, speaker in prompts])
    voices = dict(zip([name for name, _ in prompts], heard, strict=True))
    embeddings = _embed_files(encoder, evaluate_dir, [row["audio"] for row in results], "voices", progress)
    others = similarity_to_others(embeddings, [row["speaker"] for row in results], names, means)
    who = nearest(embeddings, names, means)
    place = {(row["id"], row["kind"]): index for index, row in enumerate(results)}
    scores: list[dict[str, Any]] = []
    for index, row in enumerate(results):
        found = {column: row[column] for column in ("id", "kind", "speaker", "seen_speaker", "seen_text")}
        found |= dict.fromkeys(MEASURES)
        found |= {"nearest": who[index], "similarity_others": float(others[index])}
        found["similarity"] = float(embeddings[index] @ voices[row["prompt"]])
        for kind in ("resynthesis", "recording"):
            beside = place.get((row["id"], kind))
            if beside is not None and kind != row["kind"]:
                found[f"similarity_{kind}"] = float(embeddings[index] @ embeddings[beside])
        scores.append(found)
    _judge(results, scores, judges, evaluate_dir, settings.dnsmos_utterances, progress)
    if settings.acoustics:
        _add_acoustics(results, scores, evaluate_dir, progress)
    write_table(scores, SCORES, out_dir / "scores.parquet")
    _write_matrix(embeddings, results, names, means, out_dir / "matrix.json")
    return {
        "kept": len(results),
        **summarise(scores, settings.bootstrap, config.evaluate.seed),
        "speaker_encoder": settings.speaker_encoder,
    }


def _judges(config: Params) -> dict[str, Judge]:
    judges: dict[str, Judge] = {}
    if config.score.dnsmos:
        from vall_e.evaluation.mos import Dnsmos

        judges["dnsmos"] = Dnsmos()
    if config.score.utmos is not None:
        from vall_e.evaluation.utmos import Utmos
        from vall_e.evaluation.verification import device_of

        judges["utmos"] = Utmos(config.score.utmos, device_of(config.score.device))
    return judges


def _judge(
    results: Sequence[Row],
    scores: Sequence[dict[str, Any]],
    judges: Mapping[str, Judge],
    folder: Path,
    utterances: int,
    progress: bool,
) -> None:
    """Adds opinion scores to the rows of ``utterances`` items."""
    chosen = spread({row["id"] for row in results}, utterances)
    todo = [pair for pair in zip(results, scores, strict=True) if judges and pair[0]["id"] in chosen]
    for row, found in tqdm(todo, desc="opinions", unit="utt", mininterval=1.0, disable=not progress or not todo):
        wave = audio.load(folder / row["audio"])
        found |= {name: judge.score(*wave) for name, judge in judges.items()}


def _add_acoustics(results: Sequence[Row], scores: Sequence[dict[str, Any]], folder: Path, progress: bool) -> None:
    """Adds the columns ``_ACOUSTICS`` to every row."""
    by_item: dict[str, dict[str, int]] = defaultdict(dict)
    for index, row in enumerate(results):
        by_item[row["id"]][row["kind"]] = index
    for kinds in tqdm(by_item.values(), desc="acoustics", unit="utt", mininterval=1.0, disable=not progress):
        sounds = {kind: analyse(*audio.load(folder / results[index]["audio"])) for kind, index in kinds.items()}
        for kind, sound in sounds.items():
            if sound is not None:
                scores[kinds[kind]] |= _acoustics(sound, sounds.get("recording") if kind != "recording" else None)


def _acoustics(sound: Sound, recording: Sound | None) -> dict[str, float | None]:
    found: dict[str, float | None] = dict.fromkeys(_ACOUSTICS)
    pitch = pitch_of(sound)
    found |= {"f0_mean": pitch.mean, "f0_std": pitch.spread, "voiced": pitch.voiced}
    if recording is not None:
        beside = compare(sound, recording)
        found |= {"mcd": beside.mcd, "duration_ratio": beside.duration_ratio}
        found |= {"f0_rmse": beside.f0_rmse, "f0_correlation": beside.f0_correlation}
    return found


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
            waiting.append(audio.load_prepared(row["path"], sample_rate, config, row["start"], row["end"]))
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
        raise ValueError("no speaker has a held-out recording: raise split.val_fraction or split.test_fraction")
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
    scores = sorted(scores, key=lambda row: row["id"])

    def intervals(rows: Sequence[Row], value_of: Callable[[Row], float | None]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for kind in KINDS:
            values = [value_of(row) for row in rows if row["kind"] == kind]
            values = [v for v in values if v is not None and not math.isnan(v)]
            out[kind] = bootstrap_mean(values, resamples, seed).as_dict() if values else None
        return out

    metrics: dict[str, Any] = {column: intervals(scores, lambda row, column=column: row[column]) for column in MEASURES}
    metrics["speaker_top1"] = intervals(scores, lambda row: float(row["nearest"] == row["speaker"]))
    for name, (column, value) in GROUPS.items():
        part = [row for row in scores if row[column] is value]
        if part:
            metrics[name] = {m: intervals(part, lambda row, m=m: row[m]) for m in _BY_GROUP}
    return metrics
