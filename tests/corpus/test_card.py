"""The data card: hours add up, rejects of all stages are there, hostile text is text, hashes are the files' own."""

from __future__ import annotations

import hashlib
from html.parser import HTMLParser

import numpy as np
import pytest

from vall_e.corpus.card import _lasting, histogram_plot, make_card, waterfall
from vall_e.corpus.quality import reject, write_rejects
from vall_e.corpus.schema import MANIFEST, MEASURES, PHONES, UTTERANCES, write_table
from vall_e.preparation import CardConfig

HOSTILE = "<script>alert('x')</script> & | **bold**"


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"u{i:03d}", "recording": f"u{i:03d}", "path": f"{i}.wav", "speaker": HOSTILE if i % 3 else "ann",
            "start": 0.0, "end": 9.0, "origin": "given",
            "text": "one two " * (1 + i % 4),
            "language": "en-us" if i % 2 else "ja", "split": ("train", "train", "val", "test")[i % 4],
            "seconds": float(rng.uniform(1, 9)), "sample_rate": 16_000, "channels": 1, "digest": "0",
        }
        for i in range(120)
    ]  # fmt: skip
    write_table(rows, UTTERANCES, tmp_path / "quality/manifest.parquet")
    phones = [{"id": row["id"], "text": "one", "phones": ["w", "ʌ", "n"]} for row in rows]
    write_table(phones, PHONES, tmp_path / "phonemize/phones.parquet")
    write_rejects(
        [reject("a", "ingest", "too_short"), reject("b", "ingest", "silent")], tmp_path / "ingest/rejects.parquet"
    )
    write_rejects([reject("c", "encode", "poisoned")], tmp_path / "encode/rejects.parquet")
    return tmp_path, rows


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.said = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.said.append(data)


def test_hours_rejects_and_hashes_are_those_of_the_tables(data):
    folder, rows = data
    config = CardConfig(licence="CC BY 4.0")
    figures = make_card(config, folder / "quality/manifest.parquet", folder, folder / "card")
    hours = sum(row["seconds"] for row in rows) / 3600
    assert figures["hours"] == pytest.approx(hours, abs=1e-4) and figures["speakers"] == figures["languages"] == 2
    assert figures["rejected"] == {"silent": 1, "too_short": 1, "poisoned": 1}
    assert [fall["stage"] for fall in waterfall(folder)] == ["ingest", "encode"]
    markdown = (folder / "card/card.md").read_text()
    manifest = (folder / "quality/manifest.parquet").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() in markdown and "CC BY 4.0" in markdown
    ann = sum(row["seconds"] for row in rows if row["speaker"] == "ann") / 3600
    assert f"| ann | 40 | {60 * ann:.1f} min |" in markdown
    assert "| encode | poisoned | 1 |" in markdown
    assert [_lasting(hours) for hours in (2.5, 0.05, 2 / 3600)] == ["2.50 h", "3.0 min", "2.0 s"]
    assert "## Licences" not in markdown
    make_card(CardConfig(), folder / "quality/manifest.parquet", folder, folder / "bare")
    assert "not stated" in (folder / "bare/index.html").read_text()


def test_the_page_is_one_file_and_hostile_text_is_only_text(data):
    folder, _ = data
    make_card(CardConfig(title=HOSTILE, notes=HOSTILE), folder / "quality/manifest.parquet", folder, folder / "card")
    page = Page((folder / "card/index.html").read_text())
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags and "b" in tags and sum(tag == "svg" for tag, _ in page.tags) == 2
    links = [
        v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "xlink:href") and not v.startswith("#")
    ]
    assert links == [], "the page needs another file"
    assert HOSTILE in page.said
    assert "<script>" not in (folder / "card/card.md").read_text()


def test_the_same_tables_make_the_same_bytes(data):
    folder, _ = data
    for name in ("a", "b"):
        make_card(CardConfig(), folder / "quality/manifest.parquet", folder, folder / name)
    assert (folder / "a/index.html").read_bytes() == (folder / "b/index.html").read_bytes()


def test_measures_are_shown_where_they_were_made(data):
    folder, rows = data
    snr = np.linspace(0, 40, len(rows))
    measured = [
        {"id": row["id"], "start": 0.0, "end": 9.0, "seconds": 9.0, "snr_db": ratio}
        for row, ratio in zip(rows, snr, strict=True)
    ]
    write_table(measured, MEASURES, folder / "quality/measures.parquet")
    make_card(CardConfig(), folder / "quality/manifest.parquet", folder, folder / "card")
    markdown = (folder / "card/card.md").read_text()
    assert "signal to noise, dB | 0.00 | 20.17 | 40.00" in markdown and "DNSMOS" not in markdown
    assert histogram_plot({"x": np.array([1.0])}, "png").startswith(b"\x89PNG")


def test_a_histogram_of_one_value_names_the_value():
    assert b"<!-- 11025" in histogram_plot({"bandwidth, Hz": np.full(9, 11_025.0)})  # labels are paths, named so


def test_an_empty_manifest_says_what_to_do(tmp_path):
    write_table([], UTTERANCES, tmp_path / "manifest.parquet")
    with pytest.raises(ValueError, match="no utterance"):
        make_card(CardConfig(), tmp_path / "manifest.parquet", tmp_path, tmp_path / "card")


@pytest.mark.parametrize("stated", [None, "CC BY 4.0"])
def test_licences_of_single_recordings_are_counted(data, stated):
    folder, rows = data
    said = {"u000": "CC0", "u001": HOSTILE, "u002": "CC0"}
    facts = {
        "path": "x",
        "speaker": "s",
        "language": "ja",
        "seconds": 1.0,
        "sample_rate": 1,
        "channels": 1,
        "digest": "0",
    }
    table = [{"id": row["id"], "licence": said.get(row["id"])} | facts for row in rows]
    write_table(table, MANIFEST, folder / "ingest/manifest.parquet")
    make_card(CardConfig(licence=stated), folder / "quality/manifest.parquet", folder, folder / "card")
    markdown = (folder / "card/card.md").read_text()
    assert "| CC0 | 2 |" in markdown and f"| {stated or 'not stated'} | 117 |" in markdown
    assert f"Licence of the recordings: {stated or 'by recording, see below'}" in markdown
    page = (folder / "card/index.html").read_text()
    assert "<h2>Licences</h2>" in page and "<script>" not in page and "<script>" not in markdown
