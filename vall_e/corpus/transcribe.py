"""A text for every utterance: the one that came with its recording, checked against a recogniser, or the recogniser's
own. Long recordings become utterances here.

Models work one after another over all shards, so that one is in memory at a time: the recogniser, then forced
alignment language by language, then diarisation. What they find is kept in the work folder, a file a shard; the
utterances follow from it without a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from vall_e.corpus.executor import POISONED, Advance, Shard, run_shards
from vall_e.corpus.quality import Row, check_reject_rate, count_rules, may_be_read, write_rejects
from vall_e.corpus.schema import MANIFEST, TRANSCRIPTS, read_rows, write_table
from vall_e.corpus.splits import position
from vall_e.corpus.transcription.aligning import Aligner, models_for, realign
from vall_e.corpus.transcription.checking import STAGE, Checker
from vall_e.corpus.transcription.listening import Listener, given_language, listen, needs_words
from vall_e.corpus.transcription.turns import Diariser, diarise
from vall_e.corpus.work import WorkFolder, code_of, key_of, write_text
from vall_e.preparation import DiariseConfig, ExecutorConfig, RecogniserConfig, TranscribeConfig

# What the passes with a model run: gates, cuts and the mapping of texts are not kept, so their code is none of it.
CODE = (
    "audio.py",
    "corpus/transcription/aligning.py",
    "corpus/transcription/languages.py",
    "corpus/transcription/listening.py",
    "corpus/transcription/pauses.py",
    "corpus/transcription/turns.py",
    "decoders.py",
    "evaluation/alignment.py",
    "evaluation/asr.py",
    "evaluation/encoder.py",
    "evaluation/hearing.py",
    "evaluation/vad.py",
    "evaluation/whisper.py",
    "text/codes.py",
    "text/espeak.py",
)


def _recogniser(config: RecogniserConfig) -> Listener:
    from vall_e.evaluation.asr import Recogniser

    return Recogniser(config)


def _aligner(model: str, language: str, device: str) -> Aligner:
    from vall_e.evaluation.alignment import ForcedAligner
    from vall_e.evaluation.whisper import device_for

    return ForcedAligner(model, language, device_for(device))


def _diariser(config: DiariseConfig, device: str) -> Diariser:
    from vall_e.corpus.transcription.turns import PyannoteDiariser
    from vall_e.evaluation.whisper import device_for

    return PyannoteDiariser(config, device_for(device))


@dataclass(frozen=True)
class Models:
    """What makes the models, each in the process that uses it; picklable."""

    recogniser: Callable[[RecogniserConfig], Listener] = _recogniser
    aligner: Callable[[str, str, str], Aligner] = _aligner
    diariser: Callable[[DiariseConfig, str], Diariser] = _diariser


def transcribe(
    config: TranscribeConfig,
    manifest: str | Path,
    out_dir: str | Path,
    work_dir: str | Path = ".work",
    executor: ExecutorConfig | None = None,
    models: Models | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make ``transcripts.parquet`` and ``rejects.parquet``.

    What the models found is kept in ``work_dir`` shard by shard: a killed run goes on where it was, and one that
    failed on a gate hears nothing again when the gate changes.

    Args:
        config: recogniser, alignment, diarisation, limits of utterances, gates, the share of given texts to check.
        manifest: table MANIFEST.
        out_dir: folder to write into.
        work_dir: folder for unfinished work.
        executor: where shards are worked on.
        models: instead of those that ``config`` names.
        progress: show a bar on stderr.

    Returns:
        kept, rejected {rule: n}, given, recognised (origin of the texts), cut (recordings that became several
        utterances), verified (texts that were checked), mean_cer (of the checked, capped at 1 each; 0 where none was),
        word_times {Whisper's code: attention, or the model that aligned}.

    Raises:
        RejectRateError: more was rejected than ``config.max_reject_rate`` allows.
    """
    out_dir, executor, models = Path(out_dir), executor or ExecutorConfig(), models or Models()
    rows = sorted(read_rows(manifest, MANIFEST), key=lambda row: row["id"])
    shards = _shards([row for row in rows if _asked(row, config)], config)
    run = _Run(config, Path(work_dir), executor, progress)
    heard = run.hear(shards, models)
    spoken = {entry["language"] for shard in shards for entry in _entries(shard, heard) if _timed(entry)}
    aligners = models_for(config.align, spoken)
    aligned = {code: run.align(shards, heard, code, model, models) for code, model in sorted(aligners.items())}
    turned = run.diarise(shards, models) if config.diarise else None
    ids = {row["id"] for row in rows}
    checker = Checker(config, ids.__contains__, config.recogniser.language == "auto")
    tables: list[pa.Table] = []
    asked: set[str] = set()
    for shard in shards:
        entries = {entry["id"]: entry for entry in _entries(shard, heard)}
        for folder in aligned.values():
            for entry in _entries(shard, folder):
                entries[entry["id"]] |= entry
        turns = {entry["id"]: entry for entry in _entries(shard, turned)}
        for row in shard.rows:
            asked.add(row["id"])
            entry, turn = entries[row["id"]], turns.get(row["id"])
            if turn and turn["fault"] and not entry["fault"]:
                entry["fault"] = turn["fault"]
            checker.add(row, entry, turn and turn.get("turns"))
        tables.append(_table(checker))
    for row in rows:
        if row["id"] not in asked:
            checker.add(row, None, None)
    tables.append(_table(checker))
    table = pa.concat_tables(tables).sort_by("id")
    write_rejects(checker.rejects, out_dir / "rejects.parquet")
    check_reject_rate(len(table), len(checker.rejects), config.max_reject_rate, STAGE, checker.rejects)
    word_times = {code: Path(aligners[code]).name if code in aligners else "attention" for code in sorted(spoken)}
    schema = TRANSCRIPTS.with_metadata({"word_times": json.dumps(word_times)})
    write_table(table, schema, out_dir / "transcripts.parquet")
    run.discard()
    given = sum(origin == "given" for origin in table["origin"].to_pylist())
    rates = checker.rates
    return {
        "kept": len(table),
        "rejected": count_rules(checker.rejects),
        "given": given,
        "recognised": len(table) - given,
        "cut": checker.cut,
        "verified": len(rates),
        "mean_cer": round(sum(rates) / len(rates), 4) if rates else 0.0,
        "word_times": word_times,
    }


def _asked(row: Row, config: TranscribeConfig) -> bool:
    """The recogniser hears a recording that has no text, is cut, or is among those whose text is checked."""
    return needs_words(row, config) or position(row["id"], 0) < config.verify_fraction


def _timed(entry: Row) -> bool:
    return not entry["fault"] and bool(entry["words"])


def _shards(rows: Sequence[Row], config: TranscribeConfig) -> list[Shard]:
    """Recordings that are worked on together, named as the files of what is found in them."""
    parts: list[list[Row]] = []
    seconds = 0.0
    for row in rows:
        if not parts or len(parts[-1]) == config.shard_size or seconds + row["seconds"] > config.shard_seconds:
            parts.append([])
            seconds = 0.0
        parts[-1].append(row)
        seconds += row["seconds"]
    return [Shard(f"shard-{number:05d}.jsonl", part) for number, part in enumerate(parts)]


def _table(checker: Checker) -> pa.Table:
    """The rows that ``checker`` has made since the last call, plain strings in place of categories."""
    plain = pa.schema([f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in TRANSCRIPTS])
    table = pa.Table.from_pylist(checker.rows, schema=plain)
    checker.rows = []
    return table


def _entries(shard: Shard, folder: WorkFolder | None) -> Iterator[Row]:
    """What was found in the recordings of ``shard`` by the pass of ``folder``; nothing without such a pass."""
    if folder is not None:
        with (folder.path / shard.name).open(encoding="utf-8") as file:
            yield from map(json.loads, file)


class _Run:
    """The passes of a run, each with a work folder of its own, keyed by what its result depends on."""

    def __init__(self, config: TranscribeConfig, work_dir: Path, executor: ExecutorConfig, progress: bool) -> None:
        self._config, self._work_dir, self._executor, self._progress = config, work_dir, executor, progress
        self._folders: list[WorkFolder] = []

    def discard(self) -> None:
        for folder in self._folders:
            folder.discard()

    def hear(self, shards: Sequence[Shard], models: Models) -> WorkFolder:
        config = self._config
        # Gates and the share that is checked are no part of the key: what was heard stays true when they change.
        params = config.model_dump(mode="json", include={"recogniser", "prompt", "max_seconds"})
        folder = self._folder(STAGE, shards, params, diarise=config.diarise is not None)
        self._forget(folder, shards)
        self._pass("hear", shards, folder, partial(models.recogniser, config.recogniser), partial(_hear, config))
        return folder

    def _forget(self, heard: WorkFolder, shards: Sequence[Shard]) -> None:
        """Have finished shards heard again in which recordings could not be read that may be read now; first forget
        what follows from them, for the run may be killed in between."""
        for shard in (shard for shard in shards if heard.done(shard.name)):
            paths = {row["id"]: row["path"] for row in shard.rows}
            faults = ((entry["fault"], paths[entry["id"]]) for entry in _entries(shard, heard))
            if may_be_read((fault and fault[0], path) for fault, path in faults):
                for later in self._work_dir.glob(f"{STAGE}_*/{shard.name}"):
                    later.unlink()
                heard.forget(shard.name)

    def align(self, shards: Sequence[Shard], heard: WorkFolder, code: str, model: str, models: Models) -> WorkFolder:
        weights = Path(model) if Path(model).exists() else model
        folder = self._folder(f"{STAGE}_align_{code}", shards, heard.key, weights=weights)
        setup = partial(models.aligner, model, code, self._config.recogniser.device)
        self._pass(f"align {code}", shards, folder, setup, partial(_align, heard, code))
        return folder

    def diarise(self, shards: Sequence[Shard], models: Models) -> WorkFolder:
        config = self._config.diarise
        weights = Path(config.model) if Path(config.model).exists() else config.model
        folder = self._folder(f"{STAGE}_turns", shards, config.model_dump(mode="json"), weights=weights)
        setup = partial(models.diariser, config, self._config.recogniser.device)
        self._pass("diarise", shards, folder, setup, _diarise)
        return folder

    def _folder(
        self, name: str, shards: Sequence[Shard], params: Any, weights: str | Path = "", diarise: bool = False
    ) -> WorkFolder:
        facts = [
            f"{shard.name}:{row['id']}:{row['digest']}:{bool(row['text'])}:{given_language(row)}"
            for shard in shards
            for row in shard.rows
        ]
        key = key_of(*facts, weights, str(diarise), params=params, code=code_of(*CODE))
        folder = WorkFolder(name, key, self._work_dir)
        self._folders.append(folder)
        return folder

    def _pass(
        self,
        name: str,
        shards: Sequence[Shard],
        folder: WorkFolder,
        setup: Callable[[], Any],
        work: Callable[..., list[Row]],
    ) -> None:
        todo = [shard for shard in shards if not folder.done(shard.name)]
        total, left = (sum(len(shard.rows) for shard in part) for part in (shards, todo))
        with tqdm(
            total=total,
            initial=total - left,
            unit="rec",
            desc=STAGE if name == "hear" else f"{STAGE}: {name}",
            mininterval=1,
            disable=not self._progress,
        ) as bar:
            run_shards(setup, partial(_find, work, folder.path), todo, self._executor, bar.update, folder.path)


def _find(work: Callable[..., list[Row]], folder: Path, model: Any, job: Shard, advance: Advance) -> None:
    """What ``work`` finds in the recordings of ``job``, in a file; those that killed their worker have a fault."""
    found = work(model, job, advance)
    found += [{"id": row["id"], "fault": [POISONED, why]} for row, why in job.poisoned]
    if not job.trial:
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in found]
        write_text(folder / job.name, "".join(lines))


def _hear(config: TranscribeConfig, listener: Listener, job: Shard, advance: Advance) -> list[Row]:
    return listen(listener, job.rows, config, advance)


def _align(heard: WorkFolder, code: str, aligner: Aligner, job: Shard, advance: Advance) -> list[Row]:
    entries = {entry["id"]: entry for entry in _entries(job, heard) if _timed(entry)}
    mine = [row for row in job.rows if row["id"] in entries and entries[row["id"]]["language"] == code]
    return [realign(aligner, row, entries[row["id"]], advance) for row in mine]


def _diarise(diariser: Diariser, job: Shard, advance: Advance) -> list[Row]:
    found = []
    for row in job.rows:
        found.append(diarise(diariser, row))
        advance(1)
    return found
