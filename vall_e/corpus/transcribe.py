"""A text for every recording: the one that came with it, checked against a recogniser, or the recogniser's own."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from vall_e import audio
from vall_e.corpus.quality import Row, check_reject_rate, count_rules, reject, write_rejects
from vall_e.corpus.schema import MANIFEST, TRANSCRIPTS, read_rows, write_table
from vall_e.corpus.splits import position
from vall_e.corpus.work import WorkFolder, key_of
from vall_e.preparation import TranscribeConfig
from vall_e.text.normalize import words_for_scoring

STAGE = "transcribe"
_BATCHES_A_CHUNK = 4
# Recordings without a text are real ones of unknown content, and long ones have pauses: both need VAD.
_VAD_SECONDS = 15.0
_CODE = ("audio.py", "corpus/transcribe.py", "evaluation/asr.py", "text/normalize.py")


class Listener(Protocol):
    """What of ``evaluation.asr.Recogniser`` is used here."""

    def transcribe(
        self, clips: Sequence[tuple[np.ndarray, int]], prompt: str | None = None, vad: bool = False
    ) -> list[str]: ...


def transcribe(
    config: TranscribeConfig,
    manifest: str | Path,
    out_dir: str | Path,
    work_dir: str | Path = ".work",
    recogniser: Listener | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make ``transcripts.parquet`` and ``rejects.parquet``.

    What the recogniser heard is kept in ``work_dir`` batch by batch: a killed run goes on where it was.

    Args:
        config: recogniser, its prompt, the share of given texts to check and the gate.
        manifest: table MANIFEST.
        out_dir: folder to write into.
        work_dir: folder for unfinished work.
        recogniser: instead of the one that ``config.recogniser`` names.
        progress: show a bar on stderr.

    Returns:
        kept, rejected {rule: n}, given, recognised (origin of the texts), verified (texts that were checked),
        mean_cer (of the checked, capped at 1 each; 0 where none was).

    Raises:
        RejectRateError: more was rejected than ``config.max_reject_rate`` allows.
    """
    out_dir = Path(out_dir)
    rows = sorted(read_rows(manifest, MANIFEST), key=lambda row: row["id"])
    asked = [row for row in rows if not row["text"] or position(row["id"], 0) < config.verify_fraction]
    code = [Path(audio.__file__).parent / name for name in _CODE]
    params = config.model_dump(mode="json", include={"recogniser", "prompt"})
    # The gate and the share are not part of the key: what was heard stays true when they change.
    facts = sorted(f"{row['id']}:{row['digest']}:{bool(row['text'])}" for row in rows)
    work = WorkFolder(STAGE, key_of(*facts, params=params, code=code), work_dir)
    heard = _listen(config, asked, work.path / "heard.jsonl", recogniser, progress)
    texts, rejects, rates = [], [], []
    for row in rows:
        text, dropped = _judge(row, heard.get(row["id"]), config)
        if text is None:
            rejects.append(dropped)
        else:
            texts.append(text)
        rate = text["cer"] if text else dropped.pop("cer", None)
        if rate is not None:
            rates.append(min(rate, 1.0))
    write_rejects(rejects, out_dir / "rejects.parquet")
    check_reject_rate(len(texts), len(rejects), config.max_reject_rate, STAGE, rejects)
    write_table(texts, TRANSCRIPTS, out_dir / "transcripts.parquet")
    work.discard()
    given = sum(text["origin"] == "given" for text in texts)
    return {
        "kept": len(texts),
        "rejected": count_rules(rejects),
        "given": given,
        "recognised": len(texts) - given,
        "verified": len(rates),
        "mean_cer": round(sum(rates) / len(rates), 4) if rates else 0.0,
    }


def character_error_rate(reference: str, hypothesis: str, language: str) -> float:
    """CER of what was recognised, 0 and up: of both readings of its digits the nearer one."""
    import jiwer

    wanted = " ".join(words_for_scoring(reference, language))
    rates = []
    for apart in (False, True):
        found = " ".join(words_for_scoring(hypothesis, language, digits_apart=apart))
        rates.append(jiwer.cer(wanted, found) if found else 1.0)
    return min(rates)


def _judge(row: Row, heard: Row | None, config: TranscribeConfig) -> tuple[Row | None, Row]:
    """The transcript of a recording, or None and its reject (with ``cer`` where it was computed)."""
    name, given, language = row["id"], row["text"], row["language"]
    if heard is not None and heard.get("fault"):
        return None, reject(name, STAGE, "unreadable", heard["fault"])
    text = heard["text"] if heard is not None else None
    out = {"id": name, "text": given, "origin": "given", "recognised": text, "cer": None}
    if not given:
        if not text or not words_for_scoring(text, language):
            return None, reject(name, STAGE, "no_speech", text or "nothing recognised")
        return out | {"text": text, "origin": "recognised"}, {}
    if text is None:
        return out, {}
    if not words_for_scoring(given, language):
        return None, reject(name, STAGE, "no_words", given)
    cer = character_error_rate(given, text, language)
    if cer > config.max_cer:
        row = reject(name, STAGE, "cer", f"{cer:.2f}: heard {text!r}, given {given!r}", config.max_cer)
        return None, row | {"cer": cer}
    return out | {"cer": cer}, {}


def _listen(
    config: TranscribeConfig, rows: Sequence[Row], journal: Path, recogniser: Listener | None, progress: bool
) -> dict[str, Row]:
    """Id → {text} or {fault} for every row, out of the journal or heard now and added to it."""
    heard = _read_journal(journal)
    missing = [row for row in rows if row["id"] not in heard]
    if missing and recogniser is None:
        from vall_e.evaluation.asr import Recogniser

        recogniser = Recogniser(config.recogniser)
    # Clips of like length in one batch: nothing is padded further than it needs.
    missing.sort(key=lambda row: (_needs_vad(row), row["seconds"], row["id"]))
    size = config.recogniser.batch_size * _BATCHES_A_CHUNK
    with (
        tqdm(
            total=len(rows),
            initial=len(rows) - len(missing),
            unit="utt",
            desc=STAGE,
            mininterval=1,
            disable=not progress,
        ) as bar,
        journal.open("a", encoding="utf-8") as file,
    ):
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            for vad in (False, True):
                entries = _hear([row for row in part if _needs_vad(row) == vad], config.prompt, vad, recogniser)
                for entry in entries:
                    heard[entry["id"]] = entry
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(part))
    return heard


def _needs_vad(row: Row) -> bool:
    return not row["text"] or row["seconds"] > _VAD_SECONDS


def _hear(rows: Sequence[Row], prompt: str | None, vad: bool, recogniser: Listener | None) -> list[Row]:
    entries, clips, names = [], [], []
    for row in rows:
        try:
            clips.append(audio.load(row["path"]))
            names.append(row["id"])
        except audio.AudioError as error:
            entries.append({"id": row["id"], "fault": str(error)})
    if clips and recogniser is not None:
        texts = recogniser.transcribe(clips, prompt=prompt, vad=vad)
        entries += [{"id": name, "text": text} for name, text in zip(names, texts, strict=True)]
    return entries


def _read_journal(path: Path) -> dict[str, Row]:
    """Entries of an earlier run. A last line cut off by a kill is taken out, so that the next one starts clean."""
    if not path.exists():
        return {}
    out, whole = {}, []
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
            out[entry["id"]] = entry
            whole.append(line + b"\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(whole))
    os.replace(temporary, path)
    return out
