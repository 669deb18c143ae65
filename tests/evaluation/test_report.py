"""The page: hostile text is harmless, every file it names is there, the summary has its keys."""

from __future__ import annotations

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.evaluation.corpora import write_project
from vall_e.config import Params, parse_params
from vall_e.corpus.schema import RESULTS, SCORES, read_rows, write_table
from vall_e.evaluation import standalone
from vall_e.evaluation.report import build_report, read_curves
from vall_e.evaluation.summary import MEASURES, duration, format_summary
from vall_e.evaluation.tables import join_items, length_groups, pick_examples

HOSTILE = "<script>alert(1)</script>"
QUOTED = '" onmouseover="alert(2)" x="'
ITEMS = [
    (HOSTILE, f"one two {HOSTILE} three", "one two"),
    (QUOTED, "four five", f"four {QUOTED}"),
    ("carol", "six", "six"),
    ("carol", "seven eight nine", "nothing at all like it"),
    (HOSTILE, "a b c d e", "a b c d e"),
]


def hostile_params() -> Params:
    return parse_params(
        {
            "report": {"title": f"Voices {HOSTILE}", "examples": 4},
            "evaluate": {"asr_prompt": HOSTILE, "bootstrap": 50},
            "tracking": {"uri": "https://user:hunter2@mlflow.example/", "experiment": QUOTED},
        }
    )


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.events: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.data: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.events.append(name)
            if name in ("src", "href", "srcset"):
                self.links.append(value)
            if name == "id":
                self.ids.add(value)

    def handle_data(self, data: str) -> None:
        self.data.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    root = write_project(tmp_path_factory.mktemp("project"), ITEMS)
    summary = build_report(hostile_params(), root, root / "report")
    return root, summary, (root / "report/index.html").read_text("utf-8")


def test_hostile_text_is_shown_and_not_run(built: tuple[Path, dict, str]) -> None:
    page = Page(built[2])
    assert "script" not in page.tags and "i" not in page.tags and not page.events
    shown = "".join(page.data)
    assert f"one two {HOSTILE} three" in shown and f"Voices {HOSTILE}" in shown
    assert "hunter2" not in built[2]
    card = (built[0] / "report/model_card.md").read_text("utf-8")
    assert "<script" not in card and "Voices" in card
    assert "rejected: 3 (ingest.&lt;too short&gt; 1, evaluate.no\\_prompt 2)" in card


def test_the_folder_is_self_contained(built: tuple[Path, dict, str]) -> None:
    page = Page(built[2])
    files = [unquote(link) for link in page.links if not link.startswith("#")]
    assert len(files) >= 4 * 4 + 8
    for link in files:
        assert "//" not in link and not link.startswith("/"), link
        assert (built[0] / "report" / link).is_file(), link
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    linked = {name for name in files if name.startswith(("audio/", "plots/", "tables/"))}
    there = {
        p.relative_to(built[0] / "report").as_posix()
        for p in (built[0] / "report").rglob("*.*")
        if p.parent.name in ("audio", "plots", "tables")
    }
    assert there == linked


def _embedded(page: str) -> list[str]:
    return [link for link in Page(page).links if not link.startswith("#")]


def test_one_file_is_the_page_with_all_that_it_names(built: tuple[Path, dict, str]) -> None:
    folder, page = built[0] / "report", built[2]
    alone = (folder / "standalone.html").read_text("utf-8")
    names, links = _embedded(page), _embedded(alone)
    for name, link in zip(names, links, strict=True):
        head, _, data = link.partition(";base64,")
        assert head == f"data:{standalone.KINDS[Path(name).suffix]}"
        assert base64.b64decode(data, validate=True) == (folder / unquote(name)).read_bytes()
        alone = alone.replace(f'"{link}"', f'"{name}"', 1)
    assert re.sub(r' download="[\w.]+"', "", alone) == page


def test_sounds_that_would_make_a_file_too_long_are_left_out_aloud(
    built: tuple[Path, dict, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (built[0] / "report/standalone.html").read_text("utf-8")
    monkeypatch.setattr(standalone, "LIMIT", len(whole) - 1)
    build_report(hostile_params(), built[0], tmp_path / "report", tmp_path / "summary.json")
    page = Page((tmp_path / "report/standalone.html").read_text("utf-8"))
    assert "audio" not in page.tags and page.tags.count("img") == Page(whole).tags.count("img") > 0
    assert "The sounds are left out of this page" in "".join(page.data) and "left out" not in whole
    assert all(link.startswith(("#", "data:image/", "data:text/")) for link in page.links)
    assert (tmp_path / "report/index.html").read_text("utf-8").count("<audio") == whole.count("<audio") > 0


def test_few_utterances_have_figures_without_intervals_and_a_wave_may_be_gone(tmp_path: Path) -> None:
    root = write_project(tmp_path, ITEMS[1:3])
    gone = next((root / "data/evaluate/model").glob("*.wav"))
    gone.unlink()
    summary = build_report(hostile_params(), root, root / "report")
    shown = "".join(Page((root / "report/index.html").read_text("utf-8")).data)
    assert shown.count("the wave is not in data/evaluate any more") == 1
    assert "of fewer than 5 there are none" in shown and summary["intervals"]["wer"] == {}
    assert summary["wer"]["model"] is not None and summary["wer_uncapped"]["model"] > summary["wer"]["model"]
    assert "WER, uncapped" in shown
    assert "word error rate" in format_summary(summary)


def test_the_summary_has_its_keys_and_its_figures(built: tuple[Path, dict, str]) -> None:
    root, summary, _ = built
    assert json.loads((root / "metrics/summary.json").read_text("utf-8")) == summary
    assert set(summary) == {
        *MEASURES,
        "speaker_top1",
        "real_time_factor",
        "peak_mb",
        "normaliser",
        "utterances",
        "seconds",
        "intervals",
        "speaker_top1_by_kind",
    }
    for measure in ("wer", "cer", "per", "similarity", "dnsmos"):
        assert set(summary[measure]) == {"model", "resynthesis", "recording"}
        assert all(isinstance(v, float) for v in summary[measure].values())
        if measure != "dnsmos":  # that was not heard of every item
            low, high = summary["intervals"][measure]["model"]
            assert low <= summary[measure]["model"] <= high
    # 2 of 4, 2 of 2 (3, capped), 0 of 1, 3 of 3 and 0 of 5 words were wrong.
    assert summary["wer"]["model"] == pytest.approx(7 / 15) and summary["wer"]["recording"] == 0
    assert summary["speaker_top1"] == 1.0 and summary["real_time_factor"] == 0.5
    assert summary["utterances"] == {"kept": 7, "rejected": {"ingest.<too short>": 1, "evaluate.no_prompt": 2}}
    assert summary["seconds"].keys() == {"train", "evaluate", "score", "report"} and summary["seconds"]["train"] == 90.0


def test_the_terminal_summary_says_it_all(built: tuple[Path, dict, str]) -> None:
    text = format_summary(built[1])
    for part in (
        "46.7 %",
        "7 kept · 3 rejected",
        "train 1 min 30 s",
        "report/index.html",
        "vall-e synth --model",
        "make ui",
    ):
        assert part in text
    empty = built[1] | {"dnsmos": dict.fromkeys(built[1]["dnsmos"]), "speaker_top1": None, "real_time_factor": None}
    assert "–" in format_summary(empty)


def test_the_same_figures_make_the_same_pictures(built: tuple[Path, dict, str], tmp_path: Path) -> None:
    root, _, page = built
    build_report(hostile_params(), root, tmp_path / "again", tmp_path / "summary.json")
    for picture in (root / "report/plots").iterdir():
        assert (tmp_path / "again/plots" / picture.name).read_bytes() == picture.read_bytes()
    assert (tmp_path / "again/index.html").read_text("utf-8") == page


def test_missing_stages_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    with pytest.raises(ValueError, match="run the stage evaluate"):
        build_report(parse_params({}), tmp_path, tmp_path / "report")
    (tmp_path / "metrics/train.json").write_text("{")
    with pytest.raises(ValueError, match="run the stage train again"):
        build_report(parse_params({}), tmp_path, tmp_path / "report")


def test_a_page_without_curves_dnsmos_matrix_or_prompt_text_is_still_a_page(tmp_path: Path) -> None:
    root = write_project(tmp_path, ITEMS[2:4])
    for path in (
        "plots/train.csv",
        "data/score/matrix.json",
        "data/encode/codec.json",
        "data/quality/manifest.parquet",
    ):
        (root / path).unlink()
    metrics = json.loads((root / "metrics/score.json").read_text())
    metrics["dnsmos"] = dict.fromkeys(metrics["dnsmos"])
    (root / "metrics/score.json").write_text(json.dumps(metrics))
    summary = build_report(parse_params({}), root, root / "report")
    assert summary["dnsmos"] == {"model": None, "resynthesis": None, "recording": None}
    assert "No curves were recorded" in (root / "report/index.html").read_text("utf-8")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 12, 40])
def test_examples_are_best_typical_and_worst_without_repeats(count: int) -> None:
    items = [{"id": i} for i in range(20)]
    chosen = pick_examples(items, count)
    assert len({item["id"] for _, item in chosen}) == len(chosen) == min(count, 20)
    ranks = {label: [item["id"] for name, item in chosen if name == label] for label in ("best", "typical", "worst")}
    if count >= 3:
        assert min(ranks["best"]) == 0 and max(ranks["worst"]) == 19
        assert max(ranks["best"]) < min(ranks["typical"]) <= max(ranks["typical"]) < min(ranks["worst"])


def test_items_are_ordered_by_errors_then_similarity_and_grouped_by_length() -> None:
    def rows(name: str, errors: int, words: int) -> list[dict]:
        return [
            {
                "id": name,
                "kind": k,
                "speaker": "a",
                "seen_speaker": True,
                "text": "x " * words,
                "prompt_text": "",
                "prompt": "",
                "seen_text": False,
                "reference": "x " * words,
                "hypothesis": "",
                "word_errors": errors,
                "word_count": words,
            }
            for k in ("model", "resynthesis", "recording")
        ]

    results = [r for i in range(24) for r in rows(f"{i:02d}", i % 3, 3 + i)]
    scores = {(r["id"], "model"): {"similarity": int(r["id"]) / 100, "nearest": "a"} for r in results}
    items = join_items(results, scores)
    keys = [(i["kinds"]["model"]["wer"], -i["kinds"]["model"]["similarity"]) for i in items]
    assert keys == sorted(keys)
    groups = length_groups(items, 20, 0)
    assert sum(g["count"] for g in groups) == 24 and len(groups) == 5
    assert groups[0]["label"].startswith("3-")


def test_huge_tables_are_cut_on_the_page_and_whole_beside_it(tmp_path: Path) -> None:
    many = [(f"speaker {i:03d}", f"=2+{i} <b>word</b>", "word") for i in range(130)]
    root = write_project(tmp_path, many)
    build_report(parse_params({"report": {"examples": 3}, "evaluate": {"bootstrap": 20}}), root, root / "report")
    page = (root / "report/index.html").read_text("utf-8")
    assert page.count('<td class="long">') == 100 and "100 of 130 utterances" in page and "of 130 speakers" in page
    assert "<b>word" not in page
    with (root / "report/tables/utterances.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 390 and rows[0]["mcd"] == "6.5" and rows[0]["utmos"] == ""
    # No spreadsheet computes what a text says.
    assert all(row["text"].startswith("'=2+") for row in rows)
    assert len((root / "report/tables/speakers.csv").read_text("utf-8").splitlines()) == 131


def test_texts_that_nobody_recorded_make_a_page_of_the_model_alone(tmp_path: Path) -> None:
    root = write_project(tmp_path, ITEMS[2:4])
    for table, schema in (("data/evaluate/results", RESULTS), ("data/score/scores", SCORES)):
        rows = [r for r in read_rows(root / f"{table}.parquet", schema) if r["kind"] == "model"]
        write_table(rows, schema, root / f"{table}.parquet")
    for stage in ("evaluate", "score"):
        path = root / f"metrics/{stage}.json"
        found = json.loads(path.read_text())
        for value in found.values():
            for kinds in (value, *value.values()) if isinstance(value, dict) else ():
                if isinstance(kinds, dict) and "model" in kinds:
                    kinds |= {"resynthesis": None, "recording": None}
        path.write_text(json.dumps(found | ({"wer_over_codec": None} if stage == "evaluate" else {})))
    summary = build_report(parse_params({"evaluate": {"testset": "lists/en <b>.lst"}}), root, root / "report")
    page = (root / "report/index.html").read_text("utf-8")
    assert summary["wer"]["recording"] is None and "nobody recorded the texts" in page
    assert "lists/en &lt;b&gt;.lst" in page


def test_curves_need_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="name"):
        read_curves(path)
    path.write_text("step,split,name,value\n2,train,loss,1\n1,train,loss,3\n")
    assert read_curves(path) == {"loss": {"train": [(1.0, 3.0), (2.0, 1.0)]}}


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 59.94, 185, 3720)] == ["0.0 s", "59.9 s", "3 min 05 s", "1 h 02 min"]
