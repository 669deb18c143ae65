"""Encoded utterances in memory, indexed by split and speaker.

Dimensions: L levels, T frames.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vall_e.corpus.schema import CODES, SIMILAR, read_rows, read_table
from vall_e.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Utterance:
    """One row of the encode stage.

    Attributes:
        phones: int64 [S] token ids.
        codes: int16 [L, T].
        language: espeak-ng's name.
    """

    id: str
    speaker: str
    text: str
    phones: np.ndarray
    codes: np.ndarray
    language: str = ""


@dataclass(frozen=True)
class CodesCorpus:
    """Utterances of one split and what a loader asks of them.

    Attributes:
        utterances: in the order of the shards.
        silence: int16 [L, T] codes of digital silence, for gaps between joined clips.
        frame_rate: frames per second.
        similar: ids of similar utterances by id, best first.
    """

    utterances: tuple[Utterance, ...]
    silence: np.ndarray
    frame_rate: float
    similar: Mapping[str, tuple[int, ...]]

    @cached_property
    def by_speaker(self) -> dict[str, np.ndarray]:
        """Indices int64 of each speaker's utterances."""
        return self._groups(lambda utterance: utterance.speaker)

    @cached_property
    def by_tongue(self) -> dict[tuple[str, str], np.ndarray]:
        """Indices int64 of each speaker's utterances in each language: what may be joined."""
        return self._groups(lambda utterance: (utterance.speaker, utterance.language))

    def _groups(self, key: Callable[[Utterance], Any]) -> dict[Any, np.ndarray]:
        out: dict[Any, list[int]] = defaultdict(list)
        for index, utterance in enumerate(self.utterances):
            out[key(utterance)].append(index)
        return {name: np.array(rows) for name, rows in out.items()}

    @property
    def hours(self) -> float:
        return sum(u.codes.shape[1] for u in self.utterances) / self.frame_rate / 3600

    @classmethod
    def load(
        cls, folder: str | Path, tokenizer: Tokenizer, split: str, similar: str | Path | None = None
    ) -> CodesCorpus:
        """Read the shards that the encode stage wrote.

        Args:
            folder: the encode stage's output.
            split: train, val or test.
            similar: table of the similar stage.

        Raises:
            FileNotFoundError: no shards there.
            ValueError: a damaged shard, or phones that the tokenizer does not know.
        """
        folder = Path(folder)
        shards = sorted(folder.glob("shard-*.parquet"))
        if not shards:
            raise FileNotFoundError(f"{folder} holds no shard-*.parquet: run the encode stage first")
        facts = json.loads((folder / "codec.json").read_text(encoding="utf-8"))
        utterances: list[Utterance] = []
        for shard in shards:
            utterances += _rows(read_table(shard, CODES), tokenizer, split, shard)
        place = {u.id: i for i, u in enumerate(utterances)}
        near = {}
        if similar is not None:
            for row in read_rows(similar, SIMILAR, ("id", "neighbours")):
                if row["id"] in place:
                    near[row["id"]] = tuple(place[n] for n in row["neighbours"] if n in place)
        return cls(tuple(utterances), np.array(facts["silence"], dtype=np.int16), float(facts["frame_rate"]), near)


def _rows(table: pa.Table, tokenizer: Tokenizer, split: str, shard: Path) -> list[Utterance]:
    out = []
    columns = ("id", "speaker", "language", "split", "text", "phones", "levels", "frames")
    codes = table["codes"].combine_chunks()
    values, offsets = codes.values.to_numpy(zero_copy_only=False), codes.offsets.to_numpy()
    for index, row in enumerate(table.select(columns).to_pylist()):
        if row["split"] != split:
            continue
        flat = values[offsets[index] : offsets[index + 1]]
        if len(flat) != row["levels"] * row["frames"]:
            raise ValueError(f"{shard}: row {row['id']} holds {len(flat)} codes, not {row['levels']} x {row['frames']}")
        phones = np.array(tokenizer.encode(row["phones"]), dtype=np.int64)
        matrix = flat.reshape(row["levels"], row["frames"])
        out.append(Utterance(row["id"], row["speaker"], row["text"], phones, matrix, row["language"]))
    return out
