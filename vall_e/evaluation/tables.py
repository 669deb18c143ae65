"""The report's tables: an item with its waves side by side, groups of items, and all of them as CSV files.

A page shows the first rows of a table that may be long; the file beside it holds them all.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vall_e.corpus.work import write_text
from vall_e.evaluation.error_rates import align
from vall_e.evaluation.run import GROUPS, rate_of
from vall_e.evaluation.score import MEASURES
from vall_e.evaluation.speaking import KINDS

_LENGTH_GROUPS = 5
# What the page's table of figures says: heading → (measure, name, "%" or digits, what it is).
FIGURES: dict[str, tuple[tuple[str, str, str | int, str], ...]] = {
    "Words": (
        ("wer", "WER", "%", "words the recogniser got wrong"),
        ("cer", "CER", "%", "the same in letters"),
        ("wer_uncapped", "WER, uncapped", "%", "as papers count: one text may have more errors than words"),
        ("cer_uncapped", "CER, uncapped", "%", "the same in letters"),
        ("per", "PER", "%", "the same in speech sounds (phones)"),
    ),
    "Voice": (
        ("similarity", "to the prompt", 2, "voice embedding against the prompt’s, 1 is the same"),
        ("similarity_resynthesis", "to the codec copy", 2, "against the codec’s copy of the same words"),
        ("similarity_recording", "to the recording", 2, "against the recording of the same words"),
        ("speaker_top1", "nearest voice", "%", "prompt’s speaker is the nearest of all"),
    ),
    "Sound": (
        ("dnsmos", "DNSMOS", 2, "predicted opinion of listeners, 1 to 5"),
        ("utmos", "UTMOS", 2, "predicted naturalness, 1 to 5"),
        ("mcd", "mel-cepstral distance", 2, "to the recording, aligned, dB; 0 is the same"),
    ),
    "Pitch and pace": (
        ("f0_mean", "pitch, Hz", 0, "geometric mean where voiced"),
        ("f0_std", "its spread", 2, "standard deviation, semitones: 0 is monotonous"),
        ("voiced", "voiced", "%", "share of the time"),
        ("f0_rmse", "pitch error", 2, "against the recording, aligned, semitones"),
        ("f0_correlation", "pitch correlation", 2, "with the recording, aligned: does it rise and fall alike?"),
        ("duration_ratio", "duration", 2, "over the recording’s: 1 is the same pace"),
    ),
}
_ABOUT_GROUPS = {
    "seen_speakers": "speakers heard in training",
    "unseen_speakers": "speakers never heard in training",
    "seen_texts": "texts of training",
    "unseen_texts": "texts that training never had",
}


def join_items(results: Sequence[dict], scores: Mapping[tuple[str, str], dict]) -> list[dict[str, Any]]:
    """One dictionary per test item with its kinds side by side, easiest first.

    The order is by the model's word error rate, then by similarity to the prompt.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for row in results:
        item = grouped.setdefault(
            row["id"],
            {
                **{
                    key: row[key]
                    for key in (
                        "id",
                        "speaker",
                        "seen_speaker",
                        "seen_text",
                        "text",
                        "prompt_text",
                        "prompt",
                        "word_count",
                    )
                },
                "kinds": {},
            },
        )
        score = scores.get((row["id"], row["kind"]), {})
        item["kinds"][row["kind"]] = {
            **row,
            **{measure: score.get(measure) for measure in ("nearest", *MEASURES)},
            "wer": row["word_errors"] / row["word_count"] if row["word_count"] else 0.0,
            "steps": align(row["reference"].split(), row["hypothesis"].split()),
        }
    whole = [item for item in grouped.values() if "model" in item["kinds"]]
    return sorted(
        whole, key=lambda i: (i["kinds"]["model"]["wer"], -(i["kinds"]["model"]["similarity"] or 0.0), i["id"])
    )


def pick_examples(items: Sequence[dict], count: int) -> list[tuple[str, dict]]:
    """``count`` of the ordered items: a quarter from the top, a quarter from the end, the rest from the middle."""
    count = min(count, len(items))
    edge = count // 4 if count >= 3 else 0
    edge = max(edge, 1) if count >= 3 else edge
    middle = count - 2 * edge
    start = (len(items) - middle) // 2
    return [
        *(("typical", item) for item in items[start : start + middle]),
        *(("best", item) for item in items[:edge]),
        *(("worst", item) for item in reversed(items[len(items) - edge :])),
    ]


def length_groups(items: Sequence[dict], resamples: int, seed: int) -> list[dict[str, Any]]:
    """WER by words in the text: a group per length where there are few lengths, else five of about equal size."""
    lengths = sorted(item["word_count"] for item in items if item["word_count"])
    if not lengths:
        return []
    distinct = sorted(set(lengths))
    if len(distinct) <= _LENGTH_GROUPS + 1:
        edges = [(n, n) for n in distinct]
    else:
        cuts = sorted(
            {lengths[min(len(lengths) - 1, len(lengths) * k // _LENGTH_GROUPS)] for k in range(1, _LENGTH_GROUPS)}
            | {distinct[0]}
        )
        edges = [(low, high - 1) for low, high in zip(cuts, [*cuts[1:], distinct[-1] + 1], strict=True)]
    groups = []
    for low, high in edges:
        part = [item for item in items if low <= item["word_count"] <= high]
        if part:
            rates = {k: rate_of(_of(part, k), "word", resamples, seed) for k in KINDS}
            groups.append({"label": str(low) if low == high else f"{low}-{high}", "count": len(part), **rates})
    return groups


def speaker_rows(items: Sequence[dict]) -> list[dict[str, Any]]:
    """Per speaker: seen in training, items, WER of each kind, the model's similarity and nearest-voice share."""
    grouped: dict[str, list[dict]] = defaultdict(list)
    for item in items:
        grouped[item["speaker"]].append(item)
    rows = []
    for speaker, part in sorted(grouped.items()):
        model = [i["kinds"]["model"] for i in part]
        similar = [m["similarity"] for m in model if m["similarity"] is not None]
        rows.append(
            {
                "speaker": speaker,
                "seen": part[0]["seen_speaker"],
                "count": len(part),
                "wer": {k: _rate(_of(part, k)) for k in KINDS},
                "similarity": sum(similar) / len(similar) if similar else None,
                "top1": sum(m["nearest"] == speaker for m in model) / len(model),
            }
        )
    return rows


def _of(items: Iterable[dict], kind: str) -> list[dict]:
    return [item["kinds"][kind] for item in items if kind in item["kinds"]]


def _rate(rows: Sequence[Mapping[str, Any]]) -> float | None:
    words = sum(row["word_count"] for row in rows)
    return sum(row["word_errors"] for row in rows) / words if words else None


def group_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What training has met, apart: a row for each group that there is.

    Args:
        metrics: of the stages evaluate and score.

    Returns:
        ``name``, ``speakers``, ``utterances``, and kind → interval or None as ``wer``, ``similarity``, ``mcd``.
    """
    rows = []
    for group in GROUPS:
        spoken, scored = metrics["evaluate"].get(group), metrics["score"].get(group, {})
        if spoken:
            figures = {measure: scored.get(measure) or dict.fromkeys(KINDS) for measure in ("similarity", "mcd")}
            rows.append({"name": _ABOUT_GROUPS[group], **spoken, **figures})
    return rows


def write_tables(items: Sequence[dict], speakers: Sequence[dict], folder: Path) -> dict[str, str]:
    """``utterances.csv`` (a row a wave) and ``speakers.csv``; name → path relative to the folder above ``folder``."""
    columns = ("id", "kind", "speaker", "seen_speaker", "seen_text", "text", "reference", "hypothesis", "heard")
    counts = tuple(f"{unit}_{what}" for unit in ("word", "char", "phone") for what in ("errors", "count"))
    columns = (*columns, *counts, "seconds", "compute_seconds", *MEASURES, "nearest", "warning")
    waves = [item["kinds"][kind] for item in items for kind in KINDS if kind in item["kinds"]]
    _write_csv(folder / "utterances.csv", columns, waves)
    flat = [row | {f"wer_{kind}": row["wer"][kind] for kind in KINDS} for row in speakers]
    names = ("speaker", "seen", "count", *(f"wer_{kind}" for kind in KINDS), "similarity", "top1")
    _write_csv(folder / "speakers.csv", names, flat)
    return {name: f"{folder.name}/{name}.csv" for name in ("utterances", "speakers")}


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(column)) for column in columns] for row in rows])
    write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value.lstrip()[:1] in ("=", "+", "-", "@") else value
