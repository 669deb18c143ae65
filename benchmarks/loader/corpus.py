"""A generated corpus as the encode and similar stages would leave it: random codes, no recordings.

Dimensions: L levels, T frames.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vall_e.corpus.schema import CODES, SIMILAR, write_table
from vall_e.data.corpus import CodesCorpus
from vall_e.text.tokenizer import Tokenizer

FRAME_RATE = 75.0
PHONES_A_SECOND = 12
A_SPEAKER = 200  # utterances
SHARD = 1000
TOKENIZER = Tokenizer([" ", *(chr(ord("a") + i) for i in range(26)), *(chr(ord("A") + i) for i in range(26))])


@dataclass(frozen=True)
class Sizes:
    """Of the codes; ``seconds`` are the shortest and longest utterance."""

    levels: int = 8
    codes: int = 1024
    seconds: tuple[float, float] = (1.5, 4.5)


def write(folder: Path, count: int, sizes: Sizes = Sizes()) -> None:
    """Write ``count`` utterances: ``encode/`` and ``similar.parquet`` below ``folder``."""
    rng = np.random.default_rng(0)
    near = []
    for first in range(0, count, SHARD):
        index = np.arange(first, min(first + SHARD, count))
        write_table(_shard(index, sizes, rng), CODES, folder / "encode" / f"shard-{first // SHARD:05d}.parquet")
        others = rng.integers(A_SPEAKER, size=(len(index), 5)) + (index // A_SPEAKER * A_SPEAKER)[:, None]
        ids = [f"u{i}" for i in np.minimum(others, count - 1).reshape(-1)]
        lists = pa.ListArray.from_arrays(pa.array(np.arange(0, len(ids) + 1, 5), pa.int32()), pa.array(ids))
        scores = pa.ListArray.from_arrays(lists.offsets, pa.array(np.ones(len(ids), np.float32)))
        near.append(pa.table([pa.array([f"u{i}" for i in index]), lists, scores], SIMILAR))
    write_table(pa.concat_tables(near), SIMILAR, folder / "similar.parquet")
    silence = rng.integers(sizes.codes, size=(sizes.levels, 37)).tolist()
    facts = {"silence": silence, "frame_rate": FRAME_RATE, "levels": sizes.levels, "residual": True}
    (folder / "encode/codec.json").write_text(json.dumps(facts))


def load(folder: Path) -> CodesCorpus:
    """What ``write`` wrote, mapped; the first call makes the arrays."""
    return CodesCorpus.load(folder / "encode", TOKENIZER, "train", folder / "work", folder / "similar.parquet")


def _shard(index: np.ndarray, sizes: Sizes, rng: np.random.Generator) -> pa.Table:
    seconds = rng.uniform(*sizes.seconds, size=len(index))
    frames = np.round(seconds * FRAME_RATE).astype(np.int32)
    phones = np.round(seconds * PHONES_A_SECOND).astype(np.int64)
    codes = rng.integers(sizes.codes, size=frames.sum() * sizes.levels, dtype=np.int16)
    ids = pa.array([f"u{i}" for i in index])
    columns = {
        "id": ids,
        "speaker": pa.array([f"s{i // A_SPEAKER}" for i in index]).dictionary_encode(),
        "language": pa.array(["en-us"] * len(index)).dictionary_encode(),
        "group": pa.array([f"g{i // (10 * A_SPEAKER)}" for i in index]).dictionary_encode(),
        "split": pa.array(["train"] * len(index)).dictionary_encode(),
        "text": pa.array([f"text of {i}" for i in index]),
        "phones": _lists(phones, pa.array(np.array(TOKENIZER.phones)[rng.integers(53, size=phones.sum())])),
        "frames": pa.array(frames),
        "levels": pa.array(np.full(len(index), sizes.levels, np.int16)),
        "codes": _lists(frames * sizes.levels, pa.array(codes)),
        "seconds": pa.array(seconds.astype(np.float32)),
        "source": ids,
    }
    return pa.table([columns[name] for name in CODES.names], names=CODES.names)


def _lists(lengths: np.ndarray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.concatenate(([0], lengths)).cumsum(), pa.int32()), values)
