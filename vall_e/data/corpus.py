"""Encoded utterances in memory, indexed by split and speaker.

Dimensions: L levels, T frames.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vall_e.corpus.schema import CODES, MIXTURES, SIMILAR, read_rows, read_table
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
class Mixture:
    """An utterance and something else at once, frame by frame with the utterance.

    Attributes:
        codes: int16 [L, T].
        noise: int16 [L, T], the noise alone; None where the other is a voice.
    """

    codes: np.ndarray
    noise: np.ndarray | None


@dataclass(frozen=True)
class CodesCorpus:
    """Utterances of one split and what a loader asks of them.

    Attributes:
        utterances: in the order of the shards.
        silence: int16 [L, T] codes of digital silence, for gaps between joined clips.
        frame_rate: frames per second.
        similar: ids of similar utterances by id, best first.
        mixtures: by kind (noise, overlap) and utterance id, of the kinds that were asked for.
    """

    utterances: tuple[Utterance, ...]
    silence: np.ndarray
    frame_rate: float
    similar: Mapping[str, tuple[int, ...]]
    mixtures: Mapping[str, Mapping[str, Mixture]] = field(default_factory=dict)

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
        cls,
        folder: str | Path,
        tokenizer: Tokenizer,
        split: str,
        similar: str | Path | None = None,
        mixtures: Collection[str] = (),
    ) -> CodesCorpus:
        """Read the shards that the encode stage wrote.

        Args:
            folder: the encode stage's output.
            split: train, val or test.
            similar: table of the similar stage.
            mixtures: kinds to read as well, of what the stage mixed (encode.mixtures).

        Raises:
            FileNotFoundError: no shards there.
            ValueError: a damaged shard, phones that the tokenizer does not know, or mixtures of other utterances.
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
        silence, rate = np.array(facts["silence"], dtype=np.int16), float(facts["frame_rate"])
        mixed = _mixtures(folder, {u.id: u.codes.shape for u in utterances}, mixtures)
        return cls(tuple(utterances), silence, rate, near, mixed)


def _rows(table: pa.Table, tokenizer: Tokenizer, split: str, shard: Path) -> list[Utterance]:
    out = []
    columns = ("id", "speaker", "language", "split", "text", "phones", "levels", "frames")
    for row, flat in zip(table.select(columns).to_pylist(), _lists(table, "codes"), strict=True):
        if row["split"] != split:
            continue
        phones = np.array(tokenizer.encode(row["phones"]), dtype=np.int64)
        codes = _matrix(flat, row, shard)
        out.append(Utterance(row["id"], row["speaker"], row["text"], phones, codes, row["language"]))
    return out


def _mixtures(
    folder: Path, utterances: Mapping[str, tuple[int, ...]], kinds: Collection[str]
) -> dict[str, dict[str, Mixture]]:
    """Mixtures of ``kinds`` by kind and id, of ``utterances`` with these shapes of codes."""
    out: dict[str, dict[str, Mixture]] = {kind: {} for kind in kinds}
    for path in sorted(folder.glob("mixtures-*.parquet")) if kinds else ():
        table = read_table(path, MIXTURES)
        rows = table.select(("id", "kind", "levels", "frames")).to_pylist()
        for row, codes, noise in zip(rows, _lists(table, "codes"), _lists(table, "noise"), strict=True):
            if row["id"] not in utterances or row["kind"] not in out:
                continue
            mixed = _matrix(codes, row, path)
            if mixed.shape != utterances[row["id"]]:
                raise ValueError(f"{path}: the mixture of {row['id']} is of other codes: run the encode stage again")
            alone = _matrix(noise, row, path) if row["kind"] == "noise" else None
            out[row["kind"]][row["id"]] = Mixture(mixed, alone)
    if 0 < len(out.get("noise", ())) < len(utterances):
        raise ValueError(f"{folder}: some utterances have no mixture with noise: run the encode stage again")
    return out


def _lists(table: pa.Table, column: str) -> list[np.ndarray]:
    """The values int16 [N] of a column of lists, a row each; N = 0 for null."""
    rows = table[column].combine_chunks()
    values, offsets = rows.values.to_numpy(zero_copy_only=False), rows.offsets.to_numpy()
    return [values[a:b] for a, b in pairwise(offsets)]


def _matrix(flat: np.ndarray, row: Mapping[str, Any], path: Path) -> np.ndarray:
    """Codes [L, T] of a row."""
    if len(flat) != row["levels"] * row["frames"]:
        raise ValueError(f"{path}: row {row['id']} holds {len(flat)} codes, not {row['levels']} x {row['frames']}")
    return flat.reshape(row["levels"], row["frames"])
