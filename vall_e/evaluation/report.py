"""The static page and the model card: everything a run found out, for anyone to see and hear.

The page is a folder that needs nothing else: no server, no network. Whatever came from outside (texts, names,
parameters) is escaped where it is shown, and files get names of ours.
"""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vall_e import audio
from vall_e.config import Params
from vall_e.corpus.schema import MANIFEST, RESULTS, SCORES, read_rows, read_table
from vall_e.evaluation import plots
from vall_e.evaluation.error_rates import align
from vall_e.evaluation.run import KINDS, rate_of
from vall_e.evaluation.summary import MEASURES, duration, read_metrics, summarise_run, waterfall

_TEMPLATES = Path(__file__).parent / "templates"
_LENGTH_GROUPS = 5
_SPEAKER_ROWS = 60


def build_report(
    params: Params, root: str | Path = ".", out_dir: str | Path = "report", summary_path: str | Path | None = None
) -> dict:
    """Write ``index.html`` with its audio and pictures, ``model_card.md`` and the summary.

    Args:
        params: the parameters of the run.
        root: the project's folder, in which the stages left ``data/``, ``metrics/``, ``models/`` and ``plots/``.
        out_dir: the report's folder.
        summary_path: where the summary goes as JSON; by default ``metrics/summary.json`` under ``root``.

    Returns:
        The summary (see ``summary.summarise_run``).

    Raises:
        ValueError: evaluate or score has not run, or left something unreadable.
    """
    started = time.perf_counter()
    root, out_dir = Path(root), Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    metrics = read_metrics(root / "metrics")
    metrics.pop("report", None)
    stages = waterfall(root / "data")
    summary = summarise_run(metrics, stages)
    results = read_rows(root / "data/evaluate/results.parquet", RESULTS)
    scores = {(r["id"], r["kind"]): r for r in read_rows(root / "data/score/scores.parquet", SCORES)}
    items = join_items(results, scores)
    resamples, seed = params.evaluate.bootstrap, params.evaluate.seed
    examples = pick_examples(items, params.report.examples)
    for index, (_, item) in enumerate(examples):
        _copy_audio(item, index, root / "data/evaluate", out_dir)
    lengths = length_groups(items, resamples, seed)
    context = {
        "params": params,
        "summary": summary,
        "metrics": metrics,
        "stages": stages,
        "kinds": KINDS,
        "labels": plots.LABELS,
        "examples": examples,
        "items": items,
        "speakers": speaker_rows(items),
        "speakers_shown": _SPEAKER_ROWS,
        "lengths": lengths,
        "pictures": _pictures(root, out_dir, metrics, lengths),
        "corpus": corpus_facts(root),
        "codec": _scalars(_read_json(root / "data/encode/codec.json")),
        "figures": {s: _scalars(m) for s, m in metrics.items()},
        "parameters": _no_secrets(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True)),
        "tracking_uri": _no_secrets(params.tracking.uri or ""),
        "matrix_small": len(_read_json(root / "data/score/matrix.json").get("centroids", ())) <= plots.SMALL_MATRIX,
        "others": metrics["score"].get("similarity_others", {}),
    }
    page = _environment(escape=True).get_template("report.html.j2").render(context)
    _write(out_dir / "index.html", page)
    _write(out_dir / "model_card.md", _environment(escape=False).get_template("model_card.md.j2").render(context))
    summary["seconds"]["report"] = round(time.perf_counter() - started, 2)
    summary_path = root / "metrics/summary.json" if summary_path is None else Path(summary_path)
    _write(summary_path, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return summary


def join_items(results: Sequence[dict], scores: Mapping[tuple[str, str], dict]) -> list[dict[str, Any]]:
    """One dictionary per test item with its three kinds side by side, easiest first.

    The order is by the model's word error rate, then by similarity to the prompt.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for row in results:
        item = grouped.setdefault(
            row["id"],
            {
                **{
                    key: row[key]
                    for key in ("id", "speaker", "seen_speaker", "text", "prompt_text", "prompt", "word_count")
                },
                "kinds": {},
            },
        )
        score = scores.get((row["id"], row["kind"]), {})
        item["kinds"][row["kind"]] = {
            **row,
            "similarity": score.get("similarity"),
            "nearest": score.get("nearest"),
            "dnsmos": score.get("dnsmos"),
            "wer": row["word_errors"] / row["word_count"] if row["word_count"] else 0.0,
            "steps": align(row["text"].replace("'", "").split(), row["hypothesis"].split()),
        }
    whole = [item for item in grouped.values() if set(item["kinds"]) == set(KINDS)]
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
            rates = {k: rate_of([i["kinds"][k] for i in part], "word", resamples, seed) for k in KINDS}
            groups.append({"label": str(low) if low == high else f"{low}-{high}", "count": len(part), **rates})
    return groups


def speaker_rows(items: Sequence[dict]) -> list[dict[str, Any]]:
    """Per speaker: seen in training, items, WER of each kind, the model's similarity and nearest-voice share."""
    grouped: dict[str, list[dict]] = defaultdict(list)
    for item in items:
        grouped[item["speaker"]].append(item)
    rows = []
    for speaker, part in sorted(grouped.items()):
        words = sum(i["word_count"] for i in part)
        model = [i["kinds"]["model"] for i in part]
        similar = [m["similarity"] for m in model if m["similarity"] is not None]
        rows.append(
            {
                "speaker": speaker,
                "seen": part[0]["seen_speaker"],
                "count": len(part),
                "wer": {k: sum(i["kinds"][k]["word_errors"] for i in part) / words if words else None for k in KINDS},
                "similarity": sum(similar) / len(similar) if similar else None,
                "top1": sum(m["nearest"] == speaker for m in model) / len(model),
            }
        )
    return rows


def corpus_facts(root: Path) -> dict[str, Any]:
    """Speakers, and utterances and hours per split, of the manifest; empty where there is none."""
    path = root / "data/ingest/manifest.parquet"
    if not path.is_file():
        return {}
    table = read_table(path, MANIFEST, ["speaker", "split", "seconds", "language"])
    by_split = {}
    for split in ("train", "val", "test"):
        part = table.filter(pc.equal(table["split"].cast("string"), split))
        by_split[split] = {"utterances": part.num_rows, "hours": float(pc.sum(part["seconds"]).as_py() or 0.0) / 3600}
    return {
        "speakers": len(pc.unique(table["speaker"].cast("string"))),
        "splits": by_split,
        "languages": sorted(pc.unique(table["language"].cast("string")).to_pylist()),
    }


def _copy_audio(item: dict, index: int, source: Path, out_dir: Path) -> None:
    """Copies the item's waves under names of ours and notes file, waveform picture and duration in the item."""
    item["players"] = {}
    for kind in ("prompt", *KINDS):
        file = source / (item["prompt"] if kind == "prompt" else item["kinds"][kind]["audio"])
        name = f"audio/{index:02d}-{kind}.wav"
        (out_dir / "audio").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out_dir / name)
        wav, rate = audio.load(file)
        item["players"][kind] = {"file": name, "wave": plots.waveform(wav), "seconds": wav.size / rate}


def _pictures(root: Path, out_dir: Path, metrics: Mapping[str, Any], lengths: Sequence[dict]) -> dict[str, list[str]]:
    """Draws the plots; name → [light, dark] paths relative to the page."""
    folder = out_dir / "plots"
    figures = {m: metrics["evaluate" if m in ("wer", "cer", "per") else "score"][m] for m in MEASURES}
    drawn = {"headline": plots.headline(figures, folder / "headline")}
    if lengths:
        drawn["length"] = plots.by_length(lengths, folder / "wer-by-length")
    matrix = _read_json(root / "data/score/matrix.json")
    if matrix.get("values"):
        drawn["matrix"] = plots.heatmap(matrix, folder / "similarity")
    curves = read_curves(root / "plots/train.csv")
    if curves:
        drawn["training"] = plots.training(curves, folder / "training")
    return {name: [f"plots/{file}" for file in files] for name, files in drawn.items()}


def read_curves(path: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Training curves of a CSV with the columns step, split, name, value: name → split → [(step, value)]."""
    if not path.is_file():
        return {}
    curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        missing = {"step", "split", "name", "value"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} lacks the columns {sorted(missing)}: run the train stage again")
        for row in reader:
            curves[row["name"]][row["split"]].append((float(row["step"]), float(row["value"])))
    return {name: {split: sorted(points) for split, points in splits.items()} for name, splits in curves.items()}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as one level of ``a.b``; lists and nulls are left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _scalars(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float | bool):
            flat[prefix + key] = value
    return flat


def _environment(*, escape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=None if escape else _markdown,
    )
    environment.filters |= {
        "percent": lambda v, digits=1: "–" if v is None else f"{100 * v:.{digits}f}\u202f%",
        "figure": lambda v, digits=2: "–" if v is None else f"{v:.{digits}f}",
        "plain": lambda v: (
            f"{v:,.4g}"
            if isinstance(v, float)
            else f"{v:,}"
            if isinstance(v, int) and not isinstance(v, bool)
            else str(v)
        ),
        "duration": duration,
        "stage_name": lambda v: str(v).replace("_", " "),
    }
    return environment


def _no_secrets(text: str) -> str:
    """A tracking URI may carry a user's name and password; a page that is passed on must not."""
    return re.sub(r"://[^/\s@]+@", "://…@", text)


def _markdown(value: Any) -> Any:
    """Text put into the model card: no markup of its own, one line."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return re.sub(r"([\\`*_\[\]#|])", r"\\\1", html.escape(re.sub(r"\s+", " ", value), quote=False))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
