"""The similar stage: for every utterance the most similar ones of its speaker, as prompts for training.

Prompting with an utterance that sounds alike, instead of any of the speaker's, teaches the model to keep manner and
recording conditions. Neighbours of a training utterance are training utterances; elsewhere they are of the same split.
Utterances of the same text are no neighbours: short ones would be the most similar of all, and a prompt that says what
is to be said teaches copying. Nor are stretches of one recording that overlap. A copy at another speed has the
neighbours of its source at that speed.

Dimensions: U utterances, k neighbours, R rows of the table (utterances and their copies).
"""

from __future__ import annotations

import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor
from tqdm import tqdm

from vall_e.corpus import features
from vall_e.corpus.encode import load_codes
from vall_e.corpus.executor import one_thread
from vall_e.corpus.nearest import Barred, nearest
from vall_e.corpus.quality import count_rules, write_rejects
from vall_e.corpus.schema import SIMILAR, UTTERANCES, read_table, write_table
from vall_e.corpus.work import WorkFolder, code_of, key_of
from vall_e.preparation import ExecutorConfig, SimilarConfig

STAGE = "similar"
CODE = ("audio.py", "corpus/features.py", "decoders.py", "evaluation/speaker.py", "models/similarity.py")
_COLUMNS = ["id", "recording", "path", "start", "end", "speaker", "split"]


def similar(
    config: SimilarConfig,
    manifest: Path,
    codes_folder: Path,
    out_dir: Path,
    executor: ExecutorConfig,
    work_root: Path = Path(".work"),
    progress: bool = True,
    tables: Tensor | None = None,
) -> dict[str, Any]:
    """Write ``similar.parquet`` (schema SIMILAR) with a row for every encoded utterance, and ``rejects.parquet``.

    Utterances that killed the process that listened to them or read their codes, whose recording cannot be read or
    whose codes are not of the codec, have no neighbours and are nobody's; ``rejects.parquet`` names them. They stay in
    the corpus.

    Args:
        manifest: table UTTERANCES, for the recordings' paths and the utterances' places in them.
        codes_folder: the encode stage's folder.
        executor: where features are made; no influence on the result.
        work_root: where finished shards of features wait for the others.
        progress: show a bar on stderr.
        tables: float [L, n, d], what the codes of ``similar.feature: codes`` stand for.

    Returns:
        flat figures: seconds, kept, rejected {rule: n}, alone (utterances without a neighbour), top1 (mean cosine of
        the best neighbours).

    Raises:
        ValueError: the codes come from another manifest, or none of them is of the codec.
    """
    started = time.perf_counter()
    encoded = load_codes(codes_folder, ["id", "source", "text"])
    rows = _sources(encoded, manifest, codes_folder)
    bar = partial(tqdm, total=len(rows), unit="utt", desc=STAGE, mininterval=1, disable=not progress)
    work = WorkFolder(STAGE, _key(config, manifest, codes_folder, tables), work_root)
    with bar() as shown:
        if config.feature == "codes":
            names = rows["id"].combine_chunks()
            table, rejects = features.read_codes(codes_folder, names, tables, work, executor, shown.update)
        else:
            table, rejects = features.heard(config.feature, rows, work, executor, shown.update)
    index, cosines = _neighbours(config, rows, table, {row["id"] for row in rejects})
    result = _table(encoded, rows["id"].combine_chunks(), index, cosines)
    write_rejects(rejects, Path(out_dir) / "rejects.parquet")
    write_table(result, SIMILAR, Path(out_dir) / "similar.parquet")
    del table
    work.discard()
    lengths = pc.list_value_length(result["neighbours"]).to_numpy()
    firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]])[lengths > 0] if len(lengths) else []
    scores = result["scores"].combine_chunks().flatten().to_numpy()
    return {
        "kept": len(result),
        "rejected": count_rules(rejects),
        "alone": int((lengths == 0).sum()),
        "top1": round(float(scores[firsts].mean()), 4) if len(firsts) else 0.0,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _sources(encoded: pa.Table, manifest: Path, codes_folder: Path) -> pa.Table:
    """Rows of the manifest that were encoded, ordered by id, with their normalised text."""
    found = read_table(manifest, UTTERANCES, _COLUMNS)
    texts = encoded.group_by("source", use_threads=False).aggregate([("text", "first")]).sort_by("source")
    place = pc.index_in(texts["source"], found["id"].combine_chunks())
    if place.null_count:
        stranger = texts["source"].filter(place.is_null())[0]
        raise ValueError(f"{manifest} lacks {stranger}, which {codes_folder} has: run the encode stage again")
    return found.take(place).append_column("text", texts["text_first"])


def _key(config: SimilarConfig, manifest: Path, codes_folder: Path, tables: Tensor | None) -> str:
    """Of all that features depend on."""
    meaning = "" if tables is None else hashlib.sha256(tables.numpy().tobytes()).hexdigest()
    return key_of(manifest, codes_folder, meaning, params={"feature": config.feature}, code=code_of(*CODE))


def _neighbours(
    config: SimilarConfig, rows: pa.Table, table: np.ndarray, lost: set[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Places among the U ``rows`` of each one's neighbours, int64 [U, k] with -1 for none, and cosines [U, k].

    Args:
        table: features [H, D] of the rows whose ids are not ``lost``, in their order.
    """
    heard = np.flatnonzero([name not in lost for name in rows["id"].to_pylist()])
    feature = np.zeros(len(rows), dtype=np.int64)
    feature[heard] = np.arange(len(heard))
    spans = list(zip(*(rows[name].to_pylist() for name in ("recording", "start", "end")), strict=True))
    barred = Barred.of(rows["text"].to_pylist(), spans)
    owner = np.asarray([f"{s}\0{p}" for s, p in zip(*(rows[n].to_pylist() for n in ("speaker", "split")), strict=True)])
    index = np.full((len(rows), config.top_k), -1, dtype=np.int64)
    cosines = np.zeros((len(rows), config.top_k), dtype=np.float32)
    order = heard[np.argsort(owner[heard], kind="stable")]
    with one_thread():
        for members in np.split(order, np.flatnonzero(owner[order][1:] != owner[order][:-1]) + 1):
            mine, others = table[feature[members]], barred.take(members)
            near, cosines[members] = nearest(
                mine, others, config.top_k, exact_below=config.exact_below, seed=config.seed
            )
            index[members] = np.where(near >= 0, members[near], -1)
    return index, cosines


def _table(encoded: pa.Table, sources: pa.Array, index: np.ndarray, cosines: np.ndarray) -> pa.Table:
    """SIMILAR of all R encoded rows: a copy has those neighbours of its source that have a copy of its speed."""
    ids, names = encoded["id"].combine_chunks(), encoded["source"].to_pylist()
    source = pc.index_in(encoded["source"], sources).to_numpy()
    suffix = np.asarray([name[len(own) :] for name, own in zip(ids.to_pylist(), names, strict=True)])
    found = np.full((len(ids), index.shape[1]), -1, dtype=np.int64)
    for kind in np.unique(suffix):
        mine = np.flatnonzero(suffix == kind)
        row_of = np.full(len(sources) + 1, -1, dtype=np.int64)  # the last one is of -1, no neighbour
        row_of[source[mine]] = mine
        found[mine] = row_of[index[source[mine]]]
    there = found >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(1))]), pa.int32())
    scores = pa.array(cosines[source][there], pa.float32())
    columns = [
        ids,
        pa.ListArray.from_arrays(offsets, ids.take(pa.array(found[there]))),
        pa.ListArray.from_arrays(offsets, scores),
    ]
    return pa.Table.from_arrays(columns, names=SIMILAR.names)
