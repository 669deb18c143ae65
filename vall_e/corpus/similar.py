"""The similar stage: for every utterance the most similar ones of its speaker, as prompts for training.

Prompting with an utterance that sounds alike, instead of any of the speaker's, teaches the model to keep manner and
recording conditions. Neighbours of a training utterance are training utterances; elsewhere they are of the same split.
Utterances of the same text are no neighbours: short ones would be the most similar of all, and a prompt that says what
is to be said teaches copying. A copy at another speed has the neighbours of its source at that speed.

Dimensions: U utterances, D width of a feature, N samples, k neighbours.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vall_e.audio import load, trim_silence
from vall_e.corpus.clips import batches
from vall_e.corpus.encode import load_codes
from vall_e.corpus.executor import one_thread
from vall_e.corpus.schema import MANIFEST, SIMILAR, read_encoded, read_rows, write_table
from vall_e.models.similarity import utterance_vectors
from vall_e.preparation import SimilarConfig

RATE = 16_000
CHUNK = 1 << 24  # cosines computed at once
_BATCH = 64  # recordings in memory
_WINDOW = 1024  # rows of codes in memory, sorted by length
_FRAMES = 1 << 14  # of which vectors are in memory, padding included


def similar(
    config: SimilarConfig,
    manifest: Path,
    codes_folder: Path,
    out_dir: Path,
    progress: bool = True,
    tables: Tensor | None = None,
) -> dict[str, Any]:
    """Write ``similar.parquet`` (schema SIMILAR) with a row for every encoded utterance.

    Args:
        manifest: table MANIFEST, for the recordings' paths.
        codes_folder: the encode stage's folder.
        progress: show a bar on stderr.
        tables: float [L, n, d], what the codes of ``similar.feature: codes`` stand for.

    Returns:
        flat figures: seconds, kept, alone (utterances without a neighbour), top1 (mean cosine of the best neighbours).

    Raises:
        ValueError: the codes come from another manifest.
    """
    started = time.perf_counter()
    encoded = load_codes(codes_folder, ["id", "source", "text"]).to_pylist()
    texts = {row["source"]: row["text"] for row in encoded}
    recordings = {row["id"]: row for row in read_rows(manifest, MANIFEST, ["id", "path", "speaker", "split"])}
    sources = sorted({row["source"] for row in encoded})
    strangers = [source for source in sources if source not in recordings]
    if strangers:
        raise ValueError(f"{manifest} lacks {strangers[0]}, which {codes_folder} has: run the encode stage again")
    bar = partial(tqdm, total=len(sources), unit="utt", desc="similar", mininterval=1, disable=not progress)
    if config.feature == "codes":
        features = _code_features(bar(_once(read_encoded(codes_folder, ("id", "source")))), sources, tables)
    else:
        features = _heard(config)(bar(recordings[source]["path"] for source in sources))
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, source in enumerate(sources):
        groups[recordings[source]["speaker"], recordings[source]["split"]].append(index)
    near: dict[str, list[tuple[str, float]]] = {}
    for members in groups.values():
        names = [sources[index] for index in members]
        found = nearest(features[members], [texts[name] for name in names], config.top_k)
        near |= {name: [(names[i], score) for i, score in row] for name, row in zip(names, found, strict=True)}
    rows = list(_rows(encoded, near))
    write_table(rows, SIMILAR, Path(out_dir) / "similar.parquet")
    best = [row["scores"][0] for row in rows if row["scores"]]
    return {
        "kept": len(rows),
        "alone": len(rows) - len(best),
        "top1": round(float(np.mean(best)), 4) if best else 0.0,
        "seconds": round(time.perf_counter() - started, 2),
    }


def nearest(
    features: np.ndarray, texts: Sequence[str], top_k: int, chunk: int = CHUNK
) -> list[list[tuple[int, float]]]:
    """The most similar rows of other text to each row, by cosine; of equals the earlier one first.

    Args:
        features: float [U, D]; a row of zeros is similar to nothing (cosine 0).
        texts: U texts.
        top_k: k.
        chunk: cosines computed at once, which bounds the memory.

    Returns:
        for each row up to k pairs of index and cosine, best first.
    """
    count = len(features)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, norms, out=np.zeros(features.shape, dtype=np.float32), where=norms > 0)
    _, text = np.unique(np.asarray(texts, dtype=str), return_inverse=True)
    k = min(top_k, count)
    step = max(1, chunk // count)
    out = []
    for start in range(0, count, step):
        # Rounding makes equals equal: sums of floats in another order differ in the last digits.
        cosines = np.round(unit[start : start + step] @ unit.T, 5)
        cosines[text[start : start + step, None] == text] = -np.inf
        for row in cosines:
            candidates = np.flatnonzero(row >= np.partition(row, count - k)[count - k])
            order = candidates[np.argsort(-row[candidates], kind="stable")[:k]]
            out.append([(int(i), float(row[i])) for i in order if np.isfinite(row[i])])
    return out


def mfcc_statistics(wav: np.ndarray) -> np.ndarray:
    """Mean and deviation over time of MFCCs 1 to 19 of ``wav`` float [N] at 16 kHz → float32 [38].

    Coefficient 0 is the loudness, which says nothing about likeness.
    """
    wav = np.pad(wav, (0, max(0, 800 - len(wav))))
    coefficients = _mfcc()(torch.from_numpy(wav))[1:]
    return torch.cat([coefficients.mean(-1), coefficients.std(-1)]).numpy()


_transforms: list[torch.nn.Module] = []


def _mfcc() -> torch.nn.Module:
    if not _transforms:
        from torchaudio.transforms import MFCC

        window = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 40}
        _transforms.append(MFCC(RATE, n_mfcc=20, melkwargs=window))
    return _transforms[0]


def _heard(config: SimilarConfig) -> Callable[[Iterable[str]], np.ndarray]:
    """Recordings' paths to features."""
    return _speaker_features if config.feature == "speaker" else _mfcc_features


def _mfcc_features(paths: Iterable[str]) -> np.ndarray:
    """Statistics of every recording, each dimension scaled over the corpus, float32 [U, 38]."""
    with one_thread():
        return _scaled(np.stack([mfcc_statistics(_speech(path)) for path in paths]))


def _speaker_features(paths: Iterable[str]) -> np.ndarray:
    """Speaker embeddings, float32 [U, 256]."""
    from vall_e.evaluation.speaker import SpeakerEncoder

    encoder = SpeakerEncoder()
    return np.concatenate([encoder.embed([(_speech(p), RATE) for p in paths]) for paths in _batches(paths, _BATCH)])


def _code_features(rows: Iterable[dict[str, Any]], sources: Sequence[str], tables: Tensor) -> np.ndarray:
    """Vectors of the codes of every source (``vall_e.models.similarity``), each dimension scaled over the corpus,
    float32 [U, 2d]."""
    vectors: dict[str, np.ndarray] = {}
    with one_thread():
        for window in _batches(rows, _WINDOW):
            for batch in batches([row["frames"] for row in window], _FRAMES, mixed=True):
                chosen = [window[index] for index in batch]
                lengths = torch.tensor([row["frames"] for row in chosen])
                codes = np.zeros((len(chosen), len(tables), int(lengths.max())), dtype=np.int64)
                for padded, row in zip(codes, chosen, strict=True):
                    padded[:, : row["frames"]] = row["codes"]
                found = utterance_vectors(torch.from_numpy(codes), lengths, tables).numpy()
                vectors |= zip((row["source"] for row in chosen), found, strict=True)
    return _scaled(np.stack([vectors[source] for source in sources]))


def _once(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first row of each source: itself, for its copies stand behind it."""
    seen: set[str] = set()
    for row in rows:
        if row["source"] not in seen:
            seen.add(row["source"])
            yield row


def _scaled(table: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and deviation 1."""
    spread = table.std(0)
    return (table - table.mean(0)) / np.where(spread > 1e-6, spread, 1.0)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _speech(path: str) -> np.ndarray:
    wav, _ = load(path, RATE)
    return trim_silence(wav, RATE)


def _rows(encoded: list[dict[str, Any]], near: dict[str, list[tuple[str, float]]]) -> Iterable[dict[str, Any]]:
    present = {row["id"] for row in encoded}
    for row in encoded:
        suffix = row["id"].removeprefix(row["source"])
        found = [(name + suffix, score) for name, score in near[row["source"]] if name + suffix in present]
        yield {"id": row["id"], "neighbours": [name for name, _ in found], "scores": [score for _, score in found]}
