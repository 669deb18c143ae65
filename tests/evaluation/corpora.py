"""Corpora of tones: recordings with a manifest, and a project as the stages leave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vall_e import audio
from vall_e.corpus.schema import CODES, MANIFEST, REJECTS, RESULTS, SCORES, UTTERANCES, write_table
from vall_e.evaluation import run, score
from vall_e.evaluation.error_rates import word_errors

RATE = 16_000


def tone(pitch: float, seconds: float) -> np.ndarray:
    """A tone with a slow tremolo, so that no two pieces of it are alike: float32 [N] at 16 kHz."""
    t = np.arange(int(seconds * RATE)) / RATE
    return (0.2 * np.sin(2 * np.pi * pitch * t) * (0.7 + 0.3 * np.sin(2 * np.pi * 2 * t))).astype(np.float32)


def row(name: str, speaker: str, text: str, split: str, seconds: float, path: str = "") -> dict[str, Any]:
    return {
        "id": name,
        "recording": name,
        "path": path or f"{name}.wav",
        "start": 0.0,
        "end": seconds,
        "speaker": speaker,
        "text": text,
        "origin": "given",
        "language": "en-us",
        "split": split,
        "seconds": seconds,
        "sample_rate": RATE,
        "channels": 1,
        "digest": name,
    }


def write_recordings(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The rows with recordings behind them: each speaker a pitch, each recording a length."""
    speakers = sorted({r["speaker"] for r in rows})
    out = []
    for r in rows:
        path = folder / f"{r['id']}.wav"
        audio.save_wav(path, tone(200 + 150 * speakers.index(r["speaker"]), r["seconds"]), RATE)
        out.append(r | {"path": str(path)})
    return out


def result(
    name: str, kind: str, speaker: str, text: str, hypothesis: str, folder: Path, seen: bool = True
) -> dict[str, Any]:
    """A row of RESULTS with its waves in ``folder``."""
    found = word_errors(text.split(), hypothesis.split())
    for sub in (kind, "prompt"):
        audio.save_wav(folder / sub / f"{name}.wav", tone(300, 0.5), RATE)
    return {
        "id": name,
        "kind": kind,
        "speaker": speaker,
        "seen_speaker": seen,
        "seen_text": False,
        "text": text,
        "written": text,
        "prompt_text": "prompt " + text,
        "audio": f"{kind}/{name}.wav",
        "prompt": f"prompt/{name}.wav",
        "heard": hypothesis,
        "reference": text,
        "hypothesis": hypothesis,
        "word_errors": found.errors,
        "word_count": found.count,
        "word_edits": found.errors + 2,
        "char_edits": found.errors,
        "char_errors": found.errors,
        "char_count": 4 * found.count,
        "phone_errors": found.errors,
        "phone_count": 3 * found.count,
        "seconds": 0.5,
        "compute_seconds": 0.25 if kind == "model" else 0.0,
        "warning": "slow <b>" if kind == "model" and found.errors else None,
    }


def write_project(root: Path, items: list[tuple[str, str, str]]) -> Path:
    """A project folder as the stages leave it. ``items``: (speaker, text, what was heard of the model)."""
    folder = root / "data/evaluate"
    results, scores = [], []
    for index, (speaker, text, heard) in enumerate(items):
        for kind in run.KINDS:
            results.append(
                result(
                    f"item-{index:02d}", kind, speaker, text, heard if kind == "model" else text, folder, index % 2 == 0
                )
            )
            scores.append(
                {
                    "id": f"item-{index:02d}",
                    "kind": kind,
                    "speaker": speaker,
                    "similarity": 0.9 - 0.01 * index,
                    "nearest": speaker,
                    "similarity_others": 0.4,
                    "dnsmos": 3.0 if index % 2 else None,
                    "seen_speaker": index % 2 == 0,
                    "seen_text": False,
                    **dict.fromkeys(("utmos", "f0_correlation", "f0_rmse")),
                    **{f"similarity_{k}": 0.7 if k != kind else None for k in ("resynthesis", "recording")},
                    "f0_mean": 120.0 + index,
                    "f0_std": 2.0,
                    "voiced": 0.5,
                    **({"mcd": None, "duration_ratio": None} if kind == "recording" else {}),
                    **({"mcd": 6.5, "duration_ratio": 1.1} if kind != "recording" else {}),
                }
            )
    write_table(results, RESULTS, folder / "results.parquet")
    write_table(scores, SCORES, root / "data/score/scores.parquet")
    names = sorted({speaker for speaker, _, _ in items})
    (root / "data/score/matrix.json").write_text(
        json.dumps({"speakers": names, "centroids": names, "values": np.eye(len(names)).tolist()}), "utf-8"
    )
    rows = [row(f"u{i}", items[i % len(items)][0], "a", ("train", "val", "test")[i % 3], 1.0) for i in range(9)]
    write_table(rows, MANIFEST, root / "data/ingest/manifest.parquet")
    write_table(rows, UTTERANCES, root / "data/quality/manifest.parquet")
    write_table(
        [{"id": "bad", "stage": "ingest", "rule": "<too short>", "value": "0", "threshold": "1"}],
        REJECTS,
        root / "data/ingest/rejects.parquet",
    )
    code = {
        "language": "en-us",
        "split": "train",
        "text": "a",
        "phones": ["a"],
        "frames": 1,
        "levels": 1,
        "codes": [1],
        "seconds": 1.0,
    }
    write_table(
        [code | {"id": f"u{i}{s}", "speaker": f"a{s}", "source": f"u{i}"} for i in range(7) for s in ("", "@0.9")],
        CODES,
        root / "data/encode/shard-00000.parquet",
    )
    (root / "data/encode/codec.json").write_text('{"name": "mel", "sample_rate": 16000, "silence": [[1]]}', "utf-8")
    metrics = root / "metrics"
    metrics.mkdir()
    evaluated = run.summarise(results, 50, 0) | {"kept": len(items), "rejected": {"no_prompt": 2}, "seconds": 3.5}
    evaluated |= {"peak_mb": 512.5, "normaliser": "spoken", "testset": "corpus"}
    (metrics / "evaluate.json").write_text(json.dumps(evaluated), "utf-8")
    (metrics / "score.json").write_text(json.dumps(score.summarise(scores, 50, 0) | {"seconds": 1.5}), "utf-8")
    (metrics / "train.json").write_text('{"seconds": 90.0, "steps": 10}', "utf-8")
    (root / "plots").mkdir()
    (root / "plots/train.csv").write_text(
        "step,split,name,value\n1,train,loss,3\n2,train,loss,2\n2,val,loss,2.5\n2,val,<i>odd$name</i>,1\n", "utf-8"
    )
    return root
