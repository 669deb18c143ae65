"""Encoded utterances in memory, indexed by split and speaker.

Dimensions: L levels, T frames.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vall_e.corpus.schema import SIMILAR, read_encoded, read_rows
from vall_e.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Utterance:
    """One row of the encode stage.

    Attributes:
        phones: int64 [S] token ids.
        codes: int16 [L, T].
    """

    id: str
    speaker: str
    text: str
    phones: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class CodesCorpus:
    """Utterances of one split and what a loader asks of them.

    Attributes:
        utterances: in the order of the shards.
        silence: int16 [L, T] codes of digital silence, for gaps between joined clips.
        frame_rate: frames per second.
        similar: ids of similar utterances by id, best first.
        residual: whether the codec's levels have an order.
    """

    utterances: tuple[Utterance, ...]
    silence: np.ndarray
    frame_rate: float
    similar: Mapping[str, tuple[int, ...]]
    residual: bool = True

    @cached_property
    def by_speaker(self) -> dict[str, np.ndarray]:
        """Indices int64 of each speaker's utterances."""
        out: dict[str, list[int]] = defaultdict(list)
        for index, utterance in enumerate(self.utterances):
            out[utterance.speaker].append(index)
        return {speaker: np.array(rows) for speaker, rows in out.items()}

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
        columns = ("id", "speaker", "split", "text", "phones")
        rows = [row for row in read_encoded(folder, columns) if row["split"] == split]
        utterances = [Utterance(r["id"], r["speaker"], r["text"], _ids(tokenizer, r), r["codes"]) for r in rows]
        facts = json.loads((folder / "codec.json").read_text(encoding="utf-8"))
        place = {u.id: i for i, u in enumerate(utterances)}
        near = {}
        if similar is not None:
            for row in read_rows(similar, SIMILAR, ("id", "neighbours")):
                if row["id"] in place:
                    near[row["id"]] = tuple(place[n] for n in row["neighbours"] if n in place)
        silence, rate = np.array(facts["silence"], dtype=np.int16), float(facts["frame_rate"])
        return cls(tuple(utterances), silence, rate, near, facts["residual"])


def _ids(tokenizer: Tokenizer, row: dict[str, Any]) -> np.ndarray:
    return np.array(tokenizer.encode(row["phones"]), dtype=np.int64)
