"""``metrics/summary.json``: the whole run in one small dictionary, out of what the stages left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vall_e.corpus.schema import REJECTS, read_rows
from vall_e.evaluation.score import MEASURES as SCORED
from vall_e.evaluation.speaking import KINDS

STAGES = (
    "ingest",
    "transcribe",
    "quality",
    "phonemize",
    "fit_codec",
    "encode",
    "similar",
    "card",
    "train",
    "evaluate",
    "score",
    "report",
)
TABLES = {
    "ingest": "manifest.parquet",
    "transcribe": "transcripts.parquet",
    "quality": "manifest.parquet",
    "phonemize": "phones.parquet",
    "encode": "shard-*.parquet",
}
RATES = ("wer", "cer", "per", "wer_uncapped", "cer_uncapped")
MEASURES = (*RATES, *SCORED)

Metrics = Mapping[str, Mapping[str, Any]]


def read_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """``STAGE.json`` of every stage that has one. Raises ValueError naming a file that is not a JSON object."""
    found = {}
    for stage in STAGES:
        path = folder / f"{stage}.json"
        if not path.is_file():
            continue
        try:
            found[stage] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): run the stage {stage} again") from None
        if not isinstance(found[stage], dict):
            raise ValueError(f"{path} holds no JSON object: run the stage {stage} again")
    return found


def waterfall(data: Path) -> list[dict[str, Any]]:
    """What every data stage kept and what it dropped by which rule, out of its tables.

    Args:
        data: folder with a folder per stage.

    Returns:
        A row per stage: ``stage``, ``entered``, ``kept`` (utterances; copies at other speeds are not counted),
        ``rejected`` {rule: n}.
    """
    rows = []
    for stage, pattern in TABLES.items():
        files = sorted((data / stage).glob(pattern))
        if not files:
            continue
        kept = sum(
            len(set(pq.read_table(f, columns=["source"])["source"].to_pylist()))
            if stage == "encode"
            else pq.read_metadata(f).num_rows
            for f in files
        )
        rejects = data / stage / "rejects.parquet"
        rules = Counter(row["rule"] for row in read_rows(rejects, REJECTS)) if rejects.is_file() else Counter()
        rows.append(
            {
                "stage": stage,
                "entered": kept + sum(rules.values()),
                "kept": kept,
                "rejected": dict(sorted(rules.items(), key=lambda item: (-item[1], item[0]))),
            }
        )
    return rows


def summarise_run(metrics: Metrics, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of a run.

    Args:
        metrics: stage → what it measured, from ``read_metrics``; evaluate and score are needed.
        stages: from ``waterfall``.

    Returns:
        each of ``MEASURES``: kind → value (None where not measured); ``speaker_top1``, ``real_time_factor`` and
        ``peak_mb``; ``normaliser``; ``utterances`` {kept, rejected {stage.rule: n}};
        ``seconds`` {stage: s}; ``intervals`` {measure: {kind: [low, high]}}, where there is one;
        ``speaker_top1_by_kind``.
    """
    for stage in ("evaluate", "score"):
        if stage not in metrics:
            raise ValueError(f"metrics/{stage}.json is missing: run the stage {stage} first")
    figures = {
        **{m: metrics["evaluate"][m] for m in RATES},
        **{m: metrics["score"][m] for m in (*SCORED, "speaker_top1")},
    }
    summary: dict[str, Any] = {m: {kind: _value(figures[m].get(kind)) for kind in KINDS} for m in MEASURES}
    top1 = {kind: _value(figures["speaker_top1"].get(kind)) for kind in KINDS}
    rejected = {f"{row['stage']}.{rule}": count for row in stages for rule, count in row["rejected"].items()}
    rejected |= {f"evaluate.{rule}": count for rule, count in metrics["evaluate"].get("rejected", {}).items()}
    return {
        **summary,
        "speaker_top1": top1["model"],
        "real_time_factor": metrics["evaluate"]["real_time_factor"],
        "peak_mb": metrics["evaluate"]["peak_mb"],
        "normaliser": metrics["evaluate"]["normaliser"],
        "utterances": {"kept": stages[-1]["kept"] if stages else 0, "rejected": rejected},
        "seconds": {stage: float(metrics[stage].get("seconds", 0.0)) for stage in STAGES if stage in metrics},
        "intervals": {
            m: {k: [f["low"], f["high"]] for k, f in figures[m].items() if f and f["low"] is not None}
            for m in (*MEASURES, "speaker_top1")
        },
        "speaker_top1_by_kind": top1,
    }


def _value(found: Mapping[str, float] | None) -> float | None:
    return float(found["value"]) if found else None


def duration(seconds: float) -> str:
    """``42.0 s``, ``3 min 05 s`` or ``1 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_summary(summary: Mapping[str, Any], report: str = "report/index.html", model: str = "models/voice") -> str:
    """The summary for a terminal: figures, rejects, time, and what to do next."""
    lines = ["", f"{'':<24}{'model':>10}{'codec copy':>14}{'recording':>13}    95 % interval of the model"]
    shown = (
        ("word error rate", "wer", 100, " %"),
        ("character error rate", "cer", 100, " %"),
        ("phone error rate", "per", 100, " %"),
        ("voice similarity", "similarity", 1, ""),
        ("sound quality, 1-5", "dnsmos", 1, ""),
        ("mel-cepstral dist., dB", "mcd", 1, ""),
        ("duration ratio", "duration_ratio", 1, ""),
    )
    for label, key, scale, unit in shown:
        cells = [_cell(summary[key].get(kind), scale, unit) for kind in KINDS]
        lines.append(f"{label:<24}{cells[0]:>10}{cells[1]:>14}{cells[2]:>13}{_range(summary, key, scale)}")
    cells = [_cell(summary["speaker_top1_by_kind"].get(kind), 100, " %") for kind in KINDS]
    lines.append(
        f"{'right voice nearest':<24}{cells[0]:>10}{cells[1]:>14}{cells[2]:>13}{_range(summary, 'speaker_top1', 100)}"
    )
    if summary["real_time_factor"] is not None:
        lines.append(
            f"{'real-time factor':<24}{summary['real_time_factor']:>10.2f}    seconds of computing a second of speech"
        )
    kept, rejected = summary["utterances"]["kept"], summary["utterances"]["rejected"]
    rules = ", ".join(f"{rule} {count:,}" for rule, count in rejected.items())
    lines += [
        "",
        f"utterances   {kept:,} kept · {sum(rejected.values()):,} rejected" + (f" ({rules})" if rules else ""),
    ]
    times = " · ".join(f"{stage} {duration(s)}" for stage, s in summary["seconds"].items())
    lines += [
        f"time         {duration(sum(summary['seconds'].values()))} in all: {times}",
        "",
        f"report       {report}",
        f'speak        vall-e synth --model {model} --text "…" --ref-audio voice.wav -o out.wav',
        "compare      make ui   (MLflow in the browser)",
    ]
    return "\n".join(lines)


def _cell(value: float | None, scale: float, unit: str) -> str:
    return "–" if value is None else f"{value * scale:.{1 if unit else 2}f}{unit}"


def _range(summary: Mapping[str, Any], key: str, scale: float) -> str:
    found = summary["intervals"].get(key, {}).get("model")
    digits = 1 if scale == 100 else 2
    return f"    {found[0] * scale:.{digits}f} to {found[1] * scale:.{digits}f}" if found else ""
