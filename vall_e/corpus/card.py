"""The data card: what a corpus holds and what was dropped from it, as a page and as Markdown.

Hours by speaker, language and split, histograms, a waterfall of rejects over all stages, licences, and SHA-256 of the
tables. The page is one file: plots are in it as SVG. Whatever came from recordings is escaped.
"""

from __future__ import annotations

import html
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vall_e.corpus.quality import count_rules
from vall_e.corpus.schema import MANIFEST, PHONES, REJECTS, UTTERANCES, read_rows, shard_files
from vall_e.corpus.work import digest_of, write_text
from vall_e.preparation import CardConfig

TEMPLATES = Path(__file__).parent / "templates"
NOT_STATED = "not stated"
BINS = 30
COLUMNS = ("id", "recording", "speaker", "language", "split", "seconds", "text")
SHOWN = {  # columns of MEASURES, with the title of their histogram
    "dnsmos": "DNSMOS, 1 to 5",
    "snr_db": "signal to noise, dB",
    "bandwidth_hz": "bandwidth, Hz",
    "lufs": "loudness, LUFS",
}
BLUE, GREY = "#2f6bdb", "#5b6778"


def make_card(config: CardConfig, manifest: Path, data: Path, out_dir: Path) -> dict[str, Any]:
    """Write ``index.html`` and ``card.md``.

    Args:
        manifest: table UTTERANCES.
        data: folder with a folder for each stage; tables that are not there are not shown.

    Returns:
        flat figures: utterances, hours, speakers, languages, rejected {rule: n}.

    Raises:
        ValueError: the manifest is unreadable, lacks a column or has no rows.
    """
    rows = read_rows(manifest, UTTERANCES, COLUMNS)
    if not rows:
        raise ValueError(f"{manifest} has no utterance: run the stage that makes it again")
    falls = waterfall(data)
    licences = _licences(data / "ingest" / "manifest.parquet")
    for row in rows:
        row["licence"] = licences.get(row["recording"]) or config.licence or NOT_STATED
    facts = {
        "title": config.title,
        "licence": config.licence or ("by recording, see below" if licences else NOT_STATED),
        "licences": _groups(rows, "licence") if licences else [],
        "notes": config.notes or "",
        "totals": _totals(rows),
        "speakers": _groups(rows, "speaker")[: config.speakers],
        "speakers_left_out": max(0, len({row["speaker"] for row in rows}) - config.speakers),
        "languages": _groups(rows, "language"),
        "splits": _groups(rows, "split"),
        "falls": falls,
        "tables": [(path.relative_to(data).as_posix(), _size(path), digest_of(path)) for path in _tables(data)],
        "columns": [(field.name, str(field.type), _about(field)) for field in pq.read_schema(manifest)],
        "histograms": histograms(rows, data),
    }
    plots = {"histograms": histogram_plot(facts["histograms"]), "waterfall": waterfall_plot(falls)}
    page = _environment(page=True).get_template("card.html.j2").render(facts | {"plots": plots})
    write_text(Path(out_dir) / "index.html", page)
    write_text(Path(out_dir) / "card.md", _environment(page=False).get_template("card.md.j2").render(facts))
    rejected: Counter[str] = Counter()
    for fall in falls:
        rejected.update(fall["rules"])
    names = ("utterances", "hours", "speakers", "languages")
    return {name: facts["totals"][name] for name in names} | {"rejected": dict(rejected)}


def waterfall(data: Path) -> list[dict[str, Any]]:
    """What each stage that leaves ``rejects.parquet`` dropped, in the order of the pipeline: stage, rejected, rules
    {rule: n}, the most frequent first."""
    order = ("ingest", "transcribe", "quality", "phonemize", "encode", "similar")
    found = []
    for path in data.glob("*/rejects.parquet"):
        rules = count_rules(read_rows(path, REJECTS, ["rule"]))
        found.append({"stage": path.parent.name, "rejected": sum(rules.values()), "rules": rules})
    return sorted(found, key=lambda fall: (*[fall["stage"] != name for name in order], fall["stage"]))


def histograms(rows: Sequence[Mapping[str, Any]], data: Path) -> dict[str, np.ndarray]:
    """Title → finite values float64 [n]: of the manifest, and of what other stages measured where they did."""
    spoken = [row for row in rows if row["seconds"] > 0]
    found: dict[str, Iterable[float | None]] = {"duration, s": [row["seconds"] for row in rows]}
    found["characters per second"] = [len(row["text"] or "") / row["seconds"] for row in spoken]
    measures = data / "quality" / "measures.parquet"
    if measures.is_file():
        table = pq.read_table(measures)
        kept = {row["id"] for row in rows}
        part = table.filter(pa.array([name in kept for name in table["id"].to_pylist()], pa.bool_()))
        found |= {title: part[name].to_pylist() for name, title in SHOWN.items()}
    phones = data / "phonemize" / "phones.parquet"
    if phones.is_file():
        found["phones per utterance"] = [len(row["phones"]) for row in read_rows(phones, PHONES, ["phones"])]
    arrays = {title: np.array([v for v in values if v is not None], dtype=float) for title, values in found.items()}
    return {title: values[np.isfinite(values)] for title, values in arrays.items() if np.isfinite(values).any()}


def histogram_plot(values: Mapping[str, np.ndarray], kind: str = "svg") -> bytes:
    """All histograms as one picture; outer 0.5 % of each side share the outermost bins."""

    def paint(figure: Any) -> None:
        columns = 3
        for index, (title, found) in enumerate(values.items()):
            axis = figure.add_subplot(-(-len(values) // columns), columns, index + 1)
            low, high = np.quantile(found, (0.005, 0.995))
            axis.hist(found.clip(low, high), bins=BINS, color=BLUE)
            axis.axvline(np.median(found), color=GREY, lw=1.2, ls="--")
            axis.ticklabel_format(axis="x", useOffset=False)  # of values that are all alike, the value
            axis.set_title(title, fontsize=10, loc="left")
            axis.spines[["top", "right"]].set_visible(False)

    return _picture(paint, (10.4, 2.5 * -(-len(values) // 3)), kind)


def waterfall_plot(falls: Sequence[Mapping[str, Any]], kind: str = "svg") -> bytes:
    """A bar for each rule of each stage; b"" where nothing was dropped."""
    bars = [(f"{fall['stage']}: {rule}", count) for fall in falls for rule, count in fall["rules"].items()]
    if not bars:
        return b""

    def paint(figure: Any) -> None:
        axis = figure.add_subplot()
        names = [name.replace("$", r"\$") for name, _ in bars]
        drawn = axis.barh(range(len(bars)), [count for _, count in bars], color=BLUE)
        axis.bar_label(drawn, padding=3, fontsize=9)
        axis.set_yticks(range(len(bars)), names)
        axis.invert_yaxis()
        axis.set_xlabel("utterances dropped")
        axis.spines[["top", "right"]].set_visible(False)

    return _picture(paint, (10.4, 0.8 + 0.3 * len(bars)), kind)


def _picture(paint: Any, size: tuple[float, float], kind: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "card", "font.family": "DejaVu Sans", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        out = io.BytesIO()
        figure.savefig(out, format=kind, metadata={"Date": None, "Creator": None} if kind == "svg" else None)
    return out.getvalue()


def _licences(manifest: Path) -> dict[str, str]:
    """Recording → licence, of those whose table names one; ``manifest`` is the ingest stage's, if it is there."""
    rows = read_rows(manifest, MANIFEST, ("id", "licence")) if manifest.is_file() else []
    return {row["id"]: row["licence"] for row in rows if row["licence"]}


def _totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "utterances": len(rows),
        "hours": round(sum(row["seconds"] for row in rows) / 3600, 4),
        "speakers": len({row["speaker"] for row in rows}),
        "languages": len({row["language"] for row in rows}),
    }


def _groups(rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Utterances and hours, in all and of each split, for each value of a column, the most hours first."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[str(row[key])].append(row)
    out = []
    for name, part in groups.items():
        splits: Counter[str] = Counter()
        for row in part:
            splits[row["split"]] += row["seconds"]
        hours = {split: seconds / 3600 for split, seconds in splits.items()}
        out.append({"name": name, "utterances": len(part), "hours": sum(hours.values()), "splits": hours})
    return sorted(out, key=lambda group: (-group["hours"], group["name"]))


def _tables(data: Path) -> list[Path]:
    stages = ("ingest", "transcribe", "quality", "phonemize", "similar")
    found = [path for stage in stages for path in sorted((data / stage).glob("*.parquet"))]
    return found + (shard_files(data / "encode") if list((data / "encode").glob("shard-*.parquet")) else [])


def _size(path: Path) -> str:
    return f"{pq.read_metadata(path).num_rows:,} rows, {path.stat().st_size / 1024:,.0f} KB"


def _about(field: pa.Field) -> str:
    return (field.metadata or {}).get(b"about", b"").decode("utf-8", "replace")


def _environment(*, page: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=page, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=None if page else _plain,
    )  # fmt: skip
    environment.filters["svg"] = lambda image: Markup(_inner(image))
    environment.filters["hours"] = _lasting
    return environment


def _lasting(hours: float) -> str:
    """In the unit in which it is no zero."""
    if hours >= 0.1:
        return f"{hours:.2f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _inner(image: bytes) -> str:
    """The picture without the XML prologue, which has no place within a page."""
    return image.decode("utf-8")[image.index(b"<svg") :]


def _plain(value: Any) -> Any:
    """Text put into Markdown: one line, no markup of its own."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return re.sub(r"([\\`*_\[\]#|])", r"\\\1", html.escape(re.sub(r"\s+", " ", value), quote=False))
