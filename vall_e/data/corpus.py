"""Encoded utterances of a split, mapped into memory: opening costs the same for an hour and for ten thousand.

The Parquet tables become arrays once (``vall_e.data.build``), in ``.work/loader-*``; an utterance is a light view of
them. Dimensions: L levels, T frames, N utterances.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from vall_e.corpus.schema import shard_files
from vall_e.corpus.work import key_of
from vall_e.data.build import CODE, GROUPS, INDEX, PHONE, build_codes, build_mixtures, build_similar
from vall_e.data.store import Grouping, Ragged, cached, fingerprint, mapped
from vall_e.text.tokenizer import Tokenizer

_MAKERS = [Path(__file__).with_name(name) for name in ("build.py", "store.py")]


class Utterance:
    """One row of the encode stage, read when it is asked for.

    Attributes:
        index: its place in the split.
    """

    __slots__ = ("_rows", "index")

    def __init__(self, rows: Utterances, index: int) -> None:
        self._rows, self.index = rows, index

    @property
    def id(self) -> str:
        return self._rows.ids[self.index].tobytes().decode()

    @property
    def text(self) -> str:
        """Normalised."""
        return self._rows.texts[self.index].tobytes().decode()

    @property
    def speaker(self) -> str:
        return self._rows.name("speaker", self.index)

    @property
    def language(self) -> str:
        """Espeak-ng's name."""
        return self._rows.name("language", self.index)

    @property
    def phones(self) -> np.ndarray:
        """Int64 [S] token ids."""
        return self._rows.phones[self.index].astype(np.int64)

    @property
    def codes(self) -> np.ndarray:
        """Int16 [L, T], read-only."""
        return self._rows.codes[self.index].reshape(self._rows.levels, -1)

    @property
    def frames(self) -> int:
        """T."""
        starts = self._rows.codes.starts
        return int(starts[self.index + 1] - starts[self.index]) // self._rows.levels


class Utterances(Sequence[Utterance]):
    """The utterances of a split, in the order of the shards.

    Args:
        folder: what ``build_codes`` wrote.
        split: train, val or test.
        levels: L.

    Attributes:
        groups: by speaker, language, group (of the recordings; "" for none) and tongue: a speaker in a language.
    """

    def __init__(self, folder: Path, split: str, levels: int) -> None:
        self.folder, self.split, self.levels = folder, split, levels
        files = folder / split
        self.codes, self.phones = Ragged(files, "codes", CODE), Ragged(files, "phones", PHONE)
        self.ids, self.texts = Ragged(files, "id", np.uint8), Ragged(files, "text", np.uint8)
        self.groups = {name: Grouping(files, name) for name in (*GROUPS, "tongue")}
        self.names: dict[str, list[str]] = json.loads((folder / "names.json").read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> Utterance:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Utterance(self, index)

    def name(self, group: str, index: int) -> str:
        """What the speaker, language or group of an utterance is called."""
        return self.names[group][self.groups[group].code[index]]


@dataclass(frozen=True)
class Mixture:
    """An utterance and something else at once, frame by frame with the utterance.

    Attributes:
        codes: int16 [L, T].
        noise: int16 [L, T], the noise alone; None where the other is a voice.
    """

    codes: np.ndarray
    noise: np.ndarray | None


class Mixtures(Mapping[int, Mixture]):
    """Mixtures of one kind by the place of their utterance; not all utterances have one.

    Args:
        folder: of the kind, as ``build_mixtures`` wrote it.
        utterances: that are mixed.
    """

    def __init__(self, folder: Path, utterances: Utterances) -> None:
        files, self.utterances = folder / utterances.split, utterances
        self.starts = mapped(files, "starts")
        self.codes, self.noise = Ragged(files, "codes", CODE).values, Ragged(files, "noise", CODE).values
        self.count = int((self.starts >= 0).sum())

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        return iter(np.flatnonzero(self.starts >= 0).tolist())

    def __contains__(self, index: object) -> bool:
        return bool(self.starts[index] >= 0)

    def __getitem__(self, index: int) -> Mixture:
        start, levels = self.starts[index], self.utterances.levels
        if start < 0:
            raise KeyError(index)
        place = slice(start, start + levels * self.utterances[index].frames)
        noise = self.noise[place].reshape(levels, -1) if len(self.noise) else None
        return Mixture(self.codes[place].reshape(levels, -1), noise)


@dataclass(frozen=True)
class CodesCorpus:
    """Utterances of one split and what a loader asks of them.

    Attributes:
        utterances: in the order of the shards.
        silence: int16 [L, T] codes of digital silence, for gaps between joined clips.
        frame_rate: frames per second.
        similar: places int64 [n] of the utterances most similar to each, best first; None: nobody looked.
        mixtures: by kind (noise, overlap), of the kinds that were asked for.
        residual: whether the codec's levels have an order.
    """

    utterances: Utterances
    silence: np.ndarray
    frame_rate: float
    similar: Ragged | None = None
    mixtures: Mapping[str, Mixtures] = field(default_factory=dict)
    residual: bool = True

    @property
    def hours(self) -> float:
        return len(self.utterances.codes.values) / self.utterances.levels / self.frame_rate / 3600

    @classmethod
    def load(
        cls,
        folder: str | Path,
        tokenizer: Tokenizer,
        split: str,
        work_root: str | Path,
        similar: str | Path | None = None,
        mixtures: Collection[str] = (),
    ) -> CodesCorpus:
        """Open the shards that the encode stage wrote, as arrays that are made where this was not done before.

        Args:
            folder: the encode stage's output.
            split: train, val or test.
            work_root: where the arrays are kept: ``loader-codes-KEY`` and so on. A key holds names, sizes and times of
                the tables, the tokenizer's phones and the code that writes the arrays.
            similar: table of the similar stage.
            mixtures: kinds to open as well, of what the stage mixed (encode.mixtures).

        Raises:
            FileNotFoundError: no shards there.
            ValueError: a damaged shard, phones that the tokenizer does not know, or mixtures of other utterances.
        """
        folder, work_root, facts_file = Path(folder), Path(work_root), Path(folder) / "codec.json"
        key = key_of(*fingerprint((*shard_files(folder), facts_file)), params=list(tokenizer.phones), code=_MAKERS)
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        levels, near, mixed = facts["levels"], None, {}
        build = partial(build_codes, shards=folder, tokenizer=tokenizer, levels=levels)
        codes = cached(work_root, "loader-codes", key, build)
        utterances = Utterances(codes, split, levels)
        if similar is not None:
            key_near = key_of(key, *fingerprint([Path(similar)]))
            build = partial(build_similar, table=Path(similar), codes=codes)
            near = Ragged(cached(work_root, "loader-similar", key_near, build) / split, "near", INDEX)
        if mixtures:
            tables = sorted(folder.glob("mixtures-*.parquet"))
            build = partial(build_mixtures, tables=tables, codes=codes, levels=levels)
            places = cached(work_root, "loader-mixtures", key_of(key, *fingerprint(tables)), build)
            mixed = {kind: Mixtures(places / kind, utterances) for kind in mixtures if (places / kind).is_dir()}
        if 0 < len(mixed.get("noise", ())) < len(utterances):
            raise ValueError(f"{folder}: some utterances have no mixture with noise: run the encode stage again")
        silence = np.array(facts["silence"], dtype=CODE)
        return cls(utterances, silence, float(facts["frame_rate"]), near, mixed, facts["residual"])
