"""From the tables of encode and similar to arrays that are mapped: what ``vall_e.data.corpus`` opens.

A folder a split, the rows in the order of the shards. A shard of codes is in memory at a time. Dimensions: L levels,
T frames, N utterances of a split.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vall_e.corpus.schema import CODES, MIXTURES, SIMILAR, code_matrices, read_table, shard_files
from vall_e.corpus.splits import TEST, TRAIN, VAL
from vall_e.data.store import Grouping, Ragged, RaggedWriter, save
from vall_e.text.tokenizer import Tokenizer

SPLITS = (TRAIN, VAL, TEST)
GROUPS = ("speaker", "language", "group")
PHONE, CODE, INDEX = np.int32, np.int16, np.int64  # of the values that are kept
_COLUMNS = ("id", "split", "text", "phones", "levels", "frames", "codes", *GROUPS)


class _Split:
    """The files of one split while they are written."""

    def __init__(self, folder: Path, levels: int, names: dict[str, dict[str, int]], stack: ExitStack) -> None:
        folder.mkdir()
        self.folder, self.levels, self.names = folder, levels, names
        self.codes, self.phones, self.id, self.text = (
            stack.enter_context(closing(RaggedWriter(folder, name, dtype)))
            for name, dtype in (("codes", CODE), ("phones", PHONE), ("id", np.uint8), ("text", np.uint8))
        )
        self.groups: dict[str, list[np.ndarray]] = {name: [] for name in GROUPS}

    def add(self, table: pa.Table, codes: Sequence[np.ndarray], tokenizer: Tokenizer, path: Path) -> None:
        for index, matrix in enumerate(codes):
            if matrix.shape[0] != self.levels:
                raise ValueError(
                    f"{path}: row {table['id'][index]} has {matrix.shape[0]} levels, and codec.json says "
                    f"{self.levels}: run the encode stage again"
                )
        self.codes.add((m.reshape(-1) for m in codes), np.array([m.size for m in codes]))
        phones = table["phones"].combine_chunks()
        spelled = phones.flatten().dictionary_encode()
        ids = np.array(tokenizer.encode(spelled.dictionary.to_pylist()), PHONE)
        self.phones.add([ids[spelled.indices.to_numpy()]], pc.list_value_length(phones).to_numpy())
        for writer, column in ((self.id, "id"), (self.text, "text")):
            text = "".join(table[column].to_pylist()).encode()
            writer.add([np.frombuffer(text, np.uint8)], pc.binary_length(table[column]).to_numpy())
        for name, parts in self.groups.items():
            known = self.names[name]
            parts.append(np.array([known.setdefault(value or "", len(known)) for value in table[name].to_pylist()]))

    def finish(self) -> None:
        code = {name: np.concatenate((np.zeros(0, np.int64), *parts)) for name, parts in self.groups.items()}
        for name in GROUPS:
            Grouping.save(self.folder, name, code[name], len(self.names[name]))
        tongues = np.unique(
            code["speaker"] * max(1, len(self.names["language"])) + code["language"], return_inverse=True
        )
        Grouping.save(self.folder, "tongue", tongues[1], len(tongues[0]))


def build_codes(folder: Path, shards: Path, tokenizer: Tokenizer, levels: int) -> None:
    """Write what ``Utterances`` opens into ``folder``.

    Args:
        shards: the encode stage's output.
        levels: L.

    Raises:
        FileNotFoundError: no shards there.
        ValueError: a damaged shard, phones that the tokenizer does not know, or other levels than the codec's.
    """
    names: dict[str, dict[str, int]] = {name: {} for name in GROUPS}
    with ExitStack() as stack:
        splits = {split: _Split(folder / split, levels, names, stack) for split in SPLITS}
        for path in shard_files(shards):
            table = read_table(path, CODES, _COLUMNS)
            codes, split_of = code_matrices(table, path), np.array(table["split"].to_pylist())
            for split, writer in splits.items():
                rows = np.flatnonzero(split_of == split)
                if len(rows):
                    writer.add(table.drop_columns(["codes"]).take(rows), [codes[i] for i in rows], tokenizer, path)
    for writer in splits.values():
        writer.finish()
    (folder / "names.json").write_text(json.dumps({name: list(known) for name, known in names.items()}))


def _ids(codes: Path, split: str) -> pa.Array:
    """Ids of a split that ``build_codes`` wrote below ``codes``."""
    rows = Ragged(codes / split, "id", np.uint8)
    starts = pa.py_buffer(rows.starts.astype(np.int64))
    return pa.LargeStringArray.from_buffers(len(rows), starts, pa.py_buffer(rows.values)).cast(pa.string())


def _places(wanted: pa.Array, ids: pa.Array) -> np.ndarray:
    """Int64 [n]: where each of ``wanted`` stands among ``ids``, -1 where it does not."""
    return pc.fill_null(pc.index_in(wanted, value_set=ids), -1).to_numpy().astype(INDEX)


def build_similar(folder: Path, table: Path, codes: Path) -> None:
    """Write the neighbours of each utterance, those of its own split, best first.

    Args:
        table: of the similar stage.
        codes: what ``build_codes`` wrote.
    """
    near = read_table(table, SIMILAR, ("id", "neighbours"))
    lists = near["neighbours"].combine_chunks()
    counts = pc.list_value_length(lists).to_numpy()
    for split in SPLITS:
        ids = _ids(codes, split)
        owner = np.repeat(_places(near["id"].combine_chunks(), ids), counts)
        place = _places(lists.flatten(), ids)
        kept = (owner >= 0) & (place >= 0)
        owner, place = owner[kept], place[kept]
        (folder / split).mkdir()
        with closing(RaggedWriter(folder / split, "near", INDEX)) as writer:
            writer.add([place[np.argsort(owner, kind="stable")]], np.bincount(owner, minlength=len(ids)))


def build_mixtures(folder: Path, tables: Sequence[Path], codes: Path, levels: int) -> None:
    """Write the mixtures of each kind: ``codes`` and, where the other is noise, ``noise`` alone, one mixture behind
    the other, and ``starts`` int64 [N], the value at which an utterance's begins, -1 for none.

    Args:
        tables: schema MIXTURES.
        codes: what ``build_codes`` wrote.

    Raises:
        ValueError: a mixture has other frames than its utterance.
    """
    ids = {split: _ids(codes, split) for split in SPLITS}
    sizes = {split: Ragged(codes / split, "codes", CODE).lengths for split in SPLITS}
    index = [read_table(path, MIXTURES, ("id", "kind")) for path in tables]
    named = pa.chunked_array([table["id"] for table in index], pa.string()).combine_chunks()
    places = {split: _places(named, ids[split]) for split in SPLITS}
    kinds = sorted({kind for table in index for kind in table["kind"].unique().to_pylist()})
    with ExitStack() as stack:
        files: dict[tuple[str, str, str], RaggedWriter] = {}
        starts = {(kind, split): np.full(len(ids[split]), -1, INDEX) for kind in kinds for split in SPLITS}
        written = dict.fromkeys(starts, 0)
        for kind, split in starts:
            (folder / kind / split).mkdir(parents=True)
            for part in ("codes", "noise"):
                writer = RaggedWriter(folder / kind / split, part, CODE)
                files[kind, split, part] = stack.enter_context(closing(writer))
        first = 0
        for path in tables:
            table = read_table(path, MIXTURES)
            mixed, noises = code_matrices(table, path), code_matrices(table, path, "noise")
            for row, (name, kind) in enumerate(zip(table["id"].to_pylist(), table["kind"].to_pylist(), strict=True)):
                split = next((split for split in SPLITS if places[split][first + row] >= 0), None)
                if split is None:
                    continue
                place, codes_of = places[split][first + row], mixed[row]
                if codes_of.shape[0] != levels or codes_of.size != sizes[split][place]:
                    raise ValueError(f"{path}: the mixture of {name} is of other codes: run the encode stage again")
                starts[kind, split][place] = written[kind, split]
                written[kind, split] += codes_of.size
                for part, matrix in (("codes", codes_of), ("noise", noises[row])):
                    if matrix is not None:
                        files[kind, split, part].add([matrix], np.array([matrix.size]))
            first += len(table)
    for (kind, split), at in starts.items():
        save(folder / kind / split, starts=at)
