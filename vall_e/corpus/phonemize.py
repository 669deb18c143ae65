"""Transcripts → normalised text and IPA phones, and the tokenizer of the phones that occur."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vall_e.corpus.quality import Row, check_reject_rate, count_rules, reject, write_rejects
from vall_e.corpus.schema import MANIFEST, PHONES, TRANSCRIPTS, read_rows, write_table
from vall_e.preparation import PhonemizeConfig
from vall_e.text.normalize import normalize
from vall_e.text.phonemes import phonemize as phones_of
from vall_e.text.tokenizer import Tokenizer

STAGE = "phonemize"
_BATCH = 256


def phonemize(
    config: PhonemizeConfig, manifest: str | Path, transcripts: str | Path, out_dir: str | Path, progress: bool = True
) -> dict[str, Any]:
    """Make ``phones.parquet``, ``rejects.parquet`` and ``tokenizer.json``.

    Args:
        config: language of utterances whose manifest row names none, and stress marks.
        manifest, transcripts: tables MANIFEST and TRANSCRIPTS.
        out_dir: folder to write into.
        progress: show a bar on stderr.

    Returns:
        kept, rejected {rule: n}, phones (size of the tokenizer's phone set), mean_phones (per utterance).

    Raises:
        RejectRateError: more was rejected than ``config.max_reject_rate`` allows.
        LanguageError: espeak-ng does not know a language.
    """
    out_dir = Path(out_dir)
    languages = {row["id"]: row["language"] for row in read_rows(manifest, MANIFEST, ["id", "language"])}
    by_language: dict[str, list[tuple[str, str]]] = defaultdict(list)
    rejects: list[Row] = []
    for row in read_rows(transcripts, TRANSCRIPTS, ["id", "text"]):
        language = languages.get(row["id"]) or config.language
        text = normalize(row["text"], language)
        if text:
            by_language[language].append((row["id"], text))
        else:
            rejects.append(reject(row["id"], STAGE, "no_words", row["text"]))
    rows: list[Row] = []
    total = sum(map(len, by_language.values()))
    with tqdm(total=total, unit="utt", desc=STAGE, mininterval=1, disable=not progress) as bar:
        for language, items in sorted(by_language.items()):
            for start in range(0, len(items), _BATCH):
                part = items[start : start + _BATCH]
                spoken = phones_of([text for _, text in part], language, config.with_stress, config.words_apart)
                for (name, text), phones in zip(part, spoken, strict=True):
                    if phones:
                        rows.append({"id": name, "text": text, "phones": phones})
                    else:
                        rejects.append(reject(name, STAGE, "no_phones", text))
                bar.update(len(part))
    write_rejects(rejects, out_dir / "rejects.parquet")
    check_reject_rate(len(rows), len(rejects), config.max_reject_rate, STAGE, rejects)
    rows.sort(key=lambda row: row["id"])
    write_table(rows, PHONES, out_dir / "phones.parquet")
    tokenizer = Tokenizer.fit(row["phones"] for row in rows)
    tokenizer.save(out_dir / "tokenizer.json")
    return {
        "kept": len(rows),
        "rejected": count_rules(rejects),
        "phones": len(tokenizer.phones),
        "mean_phones": round(sum(len(row["phones"]) for row in rows) / len(rows), 2),
    }
