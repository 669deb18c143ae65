"""The static page and the model card: everything a run found out, for anyone to see and hear.

The page is a folder that needs nothing else, or one file: no server, no network. Whatever came from outside (texts,
names, parameters) is escaped where it is shown, and files get names of ours.
"""

from __future__ import annotations

import csv
import html
import json
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
from vall_e.corpus.schema import RESULTS, SCORES, UTTERANCES, read_rows, read_table
from vall_e.corpus.work import write_text
from vall_e.evaluation import plots
from vall_e.evaluation.intervals import FEWEST
from vall_e.evaluation.normalisers import ABOUT
from vall_e.evaluation.prosody import draw_prosody
from vall_e.evaluation.speaking import KINDS
from vall_e.evaluation.standalone import render_alone
from vall_e.evaluation.summary import MEASURES, duration, read_metrics, summarise_run, waterfall
from vall_e.evaluation.tables import (
    FIGURES,
    group_rows,
    join_items,
    length_groups,
    pick_examples,
    speaker_rows,
    write_tables,
)

_TEMPLATES = Path(__file__).parent / "templates"
# Rows of a table on the page; the file beside it has all.
_SPEAKER_ROWS = 60
_UTTERANCE_ROWS = 100


def build_report(
    params: Params, root: str | Path = ".", out_dir: str | Path = "report", summary_path: str | Path | None = None
) -> dict:
    """Write ``index.html`` with its audio and pictures, ``standalone.html``, ``model_card.md`` and the summary.

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
    speakers = speaker_rows(items)
    measures = {m: summary[m] for m in MEASURES} | {"speaker_top1": summary["speaker_top1_by_kind"]}
    context = {
        "params": params,
        "summary": summary,
        "metrics": metrics,
        "stages": stages,
        "kinds": KINDS,
        "labels": plots.LABELS,
        "examples": examples,
        "items": items,
        "items_shown": _UTTERANCE_ROWS,
        "fewest": FEWEST,
        "speakers": speakers,
        "speakers_shown": _SPEAKER_ROWS,
        "tables": write_tables(items, speakers, out_dir / "tables"),
        "groups": group_rows(metrics),
        "shown": FIGURES,
        "measures": measures,
        "measured_keys": [key for key, found in measures.items() if any(v is not None for v in found.values())],
        "normaliser": ABOUT[params.evaluate.normaliser],
        "lengths": lengths,
        "pictures": _pictures(root, out_dir, metrics, items, lengths),
        "corpus": corpus_facts(root),
        "codec": _scalars(_read_json(root / "data/encode/codec.json")),
        "figures": {s: _scalars(m) for s, m in metrics.items()},
        "parameters": _no_secrets(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True)),
        "tracking_uri": _no_secrets(params.tracking.uri or ""),
        "matrix_small": len(_read_json(root / "data/score/matrix.json").get("centroids", ())) <= plots.SMALL_MATRIX,
        "others": metrics["score"].get("similarity_others", {}),
    }
    page = _environment(escape=True).get_template("report.html.j2")
    write_text(out_dir / "model_card.md", _environment(escape=False).get_template("model_card.md.j2").render(context))
    write_text(out_dir / "index.html", page.render(context, link=str, alone=False, left_out_mb=None))
    write_text(out_dir / "standalone.html", render_alone(page, context, out_dir))
    summary["seconds"]["report"] = round(time.perf_counter() - started, 2)
    summary_path = root / "metrics/summary.json" if summary_path is None else Path(summary_path)
    write_text(summary_path, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return summary


def corpus_facts(root: Path) -> dict[str, Any]:
    """Speakers, and utterances and hours per split, of the manifest; empty where there is none."""
    path = root / "data/quality/manifest.parquet"
    if not path.is_file():
        return {}
    table = read_table(path, UTTERANCES, ["speaker", "split", "seconds", "language"])
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
    """Copies the item's waves under names of ours and notes file, waveform picture and duration in the item; None for
    a wave that is not there."""
    item["players"] = {}
    for kind in ("prompt", *item["kinds"]):
        file = source / (item["prompt"] if kind == "prompt" else item["kinds"][kind]["audio"])
        if not file.is_file():
            item["players"][kind] = None
            continue
        name = f"audio/{index:02d}-{kind}.wav"
        (out_dir / "audio").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out_dir / name)
        wav, rate = audio.load(file)
        item["players"][kind] = {"file": name, "wave": plots.waveform(wav), "seconds": wav.size / rate}


def _pictures(
    root: Path, out_dir: Path, metrics: Mapping[str, Any], items: Sequence[dict], lengths: Sequence[dict]
) -> dict[str, list[str]]:
    """Draws the plots; name → [light, dark] paths relative to the page."""
    folder = out_dir / "plots"
    found = {m: metrics["evaluate"][m] for m in ("wer", "cer", "per")}
    found |= {m: metrics["score"][m] for m in ("similarity", "dnsmos")}
    drawn = {"headline": plots.headline(found, folder / "headline")}
    prosody = draw_prosody(items, folder / "prosody")
    if prosody:
        drawn["prosody"] = prosody
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
