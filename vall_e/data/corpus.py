"""Encoded utterances in memory, indexed by split and speaker.

Dimensions: L levels, T frames.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vall_e.corpus.schema import MIXTURES, SIMILAR, code_matrices, read_encoded, read_rows, read_table
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
        residual: whether the codec's levels have an order.
    """

    utterances: tuple[Utterance, ...]
    silence: np.ndarray
    frame_rate: float
    similar: Mapping[str, tuple[int, ...]]
    mixtures: Mapping[str, Mapping[str, Mixture]] = field(default_factory=dict)
    residual: bool = True

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
        columns = ("id", "speaker", "language", "split", "text", "phones")
        utterances = [_utterance(r, tokenizer) for r in read_encoded(folder, columns) if r["split"] == split]
        facts = json.loads((folder / "codec.json").read_text(encoding="utf-8"))
        place = {u.id: i for i, u in enumerate(utterances)}
        near = {}
        if similar is not None:
            for row in read_rows(similar, SIMILAR, ("id", "neighbours")):
                if row["id"] in place:
                    near[row["id"]] = tuple(place[n] for n in row["neighbours"] if n in place)
        silence, rate = np.array(facts["silence"], dtype=np.int16), float(facts["frame_rate"])
        mixed = _mixtures(folder, {u.id: u.codes.shape for u in utterances}, mixtures)
        return cls(tuple(utterances), silence, rate, near, mixed, facts["residual"])


def _utterance(row: Mapping[str, Any], tokenizer: Tokenizer) -> Utterance:
    phones = np.array(tokenizer.encode(row["phones"]), dtype=np.int64)
    return Utterance(row["id"], row["speaker"], row["text"], phones, row["codes"], row["language"])


def _mixtures(
    folder: Path, utterances: Mapping[str, tuple[int, ...]], kinds: Collection[str]
) -> dict[str, dict[str, Mixture]]:
    """Mixtures of ``kinds`` by kind and id, of ``utterances`` with these shapes of codes."""
    out: dict[str, dict[str, Mixture]] = {kind: {} for kind in kinds}
    for path in sorted(folder.glob("mixtures-*.parquet")) if kinds else ():
        table = read_table(path, MIXTURES)
        rows = table.select(("id", "kind")).to_pylist()
        mixed, noises = code_matrices(table, path), code_matrices(table, path, "noise")
        for row, codes, noise in zip(rows, mixed, noises, strict=True):
            if row["id"] not in utterances or row["kind"] not in out:
                continue
            if codes.shape != utterances[row["id"]]:
                raise ValueError(f"{path}: the mixture of {row['id']} is of other codes: run the encode stage again")
            out[row["kind"]][row["id"]] = Mixture(codes, noise)
    if 0 < len(out.get("noise", ())) < len(utterances):
        raise ValueError(f"{folder}: some utterances have no mixture with noise: run the encode stage again")
    return out
