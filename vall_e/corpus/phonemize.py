"""Utterances → normalised text and IPA phones, over shards, and the tokenizer of the phones that occur."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from vall_e.corpus.executor import POISONED, Advance, Shard, run_shards
from vall_e.corpus.quality import Row, check_reject_rate, count_rules, reject, write_rejects
from vall_e.corpus.schema import PHONES, REJECTS, UTTERANCES, read_rows, read_table, write_table
from vall_e.corpus.work import WorkFolder, code_of, key_of
from vall_e.preparation import ExecutorConfig, PhonemizeConfig
from vall_e.text.normalize import normalize
from vall_e.text.phonemes import read
from vall_e.text.tokenizer import Tokenizer

STAGE = "phonemize"
SHARD = 1000
CODE = ("corpus/phonemize.py", "text")
_SAID = 5  # foreign words and new phones named in the figures


def phonemize(
    config: PhonemizeConfig,
    manifest: str | Path,
    out_dir: str | Path,
    executor: ExecutorConfig,
    work_root: str | Path = ".work",
    progress: bool = True,
) -> dict[str, Any]:
    """Make ``phones.parquet``, ``rejects.parquet`` and ``tokenizer.json``.

    Args:
        config: language of utterances whose row names none, stress marks, a tokenizer to go on from.
        manifest: table UTTERANCES, of which id, text and language are read.
        out_dir: folder to write into.
        executor: where shards are worked on; no influence on the result.
        work_root: where finished shards wait for the others.
        progress: show a bar on stderr.

    Returns:
        kept, rejected {rule: n}, phones (size of the tokenizer's phone set), mean_phones (per utterance), foreign
        (utterances with words that were read by another language's rules) with the most frequent such words, and with
        ``config.tokenizer`` new_phones with examples.

    Raises:
        RejectRateError: more was rejected than ``config.max_reject_rate`` allows.
        LanguageError: espeak-ng does not know a language.
        ValueError: ``config.tokenizer`` is no tokenizer.
    """
    out_dir, manifest = Path(out_dir), Path(manifest)
    known = None if config.tokenizer is None else Tokenizer.load(config.tokenizer)
    utterances = _utterances(manifest)
    count = len(utterances)
    numbers = range(-(-count // SHARD))
    settings = config.model_dump(mode="json", exclude={"max_reject_rate", "tokenizer"})
    work = WorkFolder(STAGE, key_of(manifest, params=settings, code=code_of(*CODE)), work_root)
    pending = [n for n in numbers if not work.done(_rejects(n))]
    with tqdm(total=count, unit="utt", desc=STAGE, mininterval=1, disable=not progress) as bar:
        bar.update(count - sum(min(SHARD, count - n * SHARD) for n in pending))
        jobs = (Shard(_phones(n), utterances.slice(n * SHARD, SHARD).to_pylist(), number=n) for n in pending)
        run_shards(_nothing, partial(_shard, config, work.path), jobs, executor, bar.update, work.path)
    rejects = [row for n in numbers for row in read_rows(work.path / _rejects(n), REJECTS)]
    shards = [read_table(work.path / _phones(n), _SHARD_PHONES) for n in numbers]
    rows = pa.concat_tables(shards) if shards else _SHARD_PHONES.empty_table()
    write_rejects(rejects, out_dir / "rejects.parquet")
    check_reject_rate(len(rows), len(rejects), config.max_reject_rate, STAGE, rejects)
    write_table(rows.select(PHONES.names), PHONES, out_dir / "phones.parquet")
    occurring = pc.unique(rows["phones"].combine_chunks().flatten()).to_pylist()
    tokenizer = Tokenizer(occurring) if known is None else known.extend(occurring)
    tokenizer.save(out_dir / "tokenizer.json")
    work.discard()
    return {
        "kept": len(rows),
        "rejected": count_rules(rejects),
        "phones": len(tokenizer.phones),
        "mean_phones": round(pc.mean(pc.list_value_length(rows["phones"])).as_py(), 2),
        **_foreign(rows),
        **({} if known is None else _new(known, rows)),
    }


_SHARD_PHONES = PHONES.append(pa.field("foreign", pa.list_(pa.string())))


def _utterances(manifest: Path) -> pa.Table:
    """What is read of the manifest, ordered by id: a shard is a stretch of it."""
    table = read_table(manifest, UTTERANCES, ["id", "language", "text"])
    return table.take(pc.sort_indices(table, sort_keys=[("id", "ascending")]))


def _phones(number: int) -> str:
    return f"phones-{number:05d}.parquet"


def _rejects(number: int) -> str:
    return f"rejects-{number:05d}.parquet"


def _nothing() -> None:
    """Backends of languages are made as they occur."""


def _shard(config: PhonemizeConfig, folder: Path, _: None, job: Shard, advance: Advance) -> None:
    rows: list[Row] = []
    rejects = [reject(row["id"], STAGE, POISONED, why) for row, why in job.poisoned]
    by_language: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for item in job.rows:
        name, written, language = item["id"], item["text"], item["language"] or config.language
        text = normalize(written, language)
        if text:
            by_language[language].append((name, text))
        else:
            rejects.append(reject(name, STAGE, "no_words", written, "words"))
    for language, part in sorted(by_language.items()):
        readings = read([text for _, text in part], language, config.with_stress, config.words_apart)
        for (name, text), reading in zip(part, readings, strict=True):
            if reading.unread:
                words = " ".join(reading.unread)
                rejects.append(reject(name, STAGE, "unread_letters", words, f"letters that {language} is written in"))
            elif reading.phones:
                rows.append({"id": name, "text": text, "phones": reading.phones, "foreign": list(reading.foreign)})
            else:
                rejects.append(reject(name, STAGE, "no_phones", text, "words that can be read"))
    if not job.trial:
        rows.sort(key=lambda row: row["id"])
        write_table(rows, _SHARD_PHONES, folder / _phones(job.number))
        # The second file says that the shard is done.
        write_rejects(rejects, folder / _rejects(job.number))
    advance(len(job.rows))


def _foreign(rows: pa.Table) -> dict[str, Any]:
    words = rows["foreign"].combine_chunks()
    count = pc.sum(pc.greater(pc.list_value_length(words), 0)).as_py() or 0
    most = sorted(Counter(words.flatten().to_pylist()).items(), key=lambda item: (-item[1], item[0]))[:_SAID]
    return {"foreign": count} | ({"foreign_words": " ".join(word for word, _ in most)} if most else {})


def _new(known: Tokenizer, rows: pa.Table) -> dict[str, Any]:
    found = known.validate(_pairs(rows))
    said = "; ".join(f"{u.phone} {u.count} ({u.example[:40]})" for u in found[:_SAID])
    return {"new_phones": len(found)} | ({"new_phones_are": said} if found else {})


def _pairs(rows: pa.Table) -> Iterator[tuple[str, list[str]]]:
    for batch in rows.select(["text", "phones"]).to_batches():
        yield from ((row["text"], row["phones"]) for row in batch.to_pylist())
