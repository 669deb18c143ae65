"""Texts are checked or recognised; a killed run goes on; phones and tokenizer follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vall_e.audio import save_wav
from vall_e.corpus.phonemize import phonemize
from vall_e.corpus.quality import RejectRateError
from vall_e.corpus.schema import MANIFEST, PHONES, REJECTS, TRANSCRIPTS, read_rows, write_table
from vall_e.corpus.transcribe import character_error_rate, transcribe
from vall_e.preparation import PhonemizeConfig, TranscribeConfig
from vall_e.text.tokenizer import Tokenizer

RATE = 16_000


class Ear:
    """A recogniser that knows each clip by its length. ``patience`` clips later it dies."""

    def __init__(self, words: dict[int, str], patience: int | None = None) -> None:
        self.words, self.patience = words, patience
        self.heard: list[str] = []
        self.calls: list[tuple[str | None, bool]] = []

    def transcribe(
        self, clips: Sequence[tuple[np.ndarray, int]], prompt: str | None = None, vad: bool = False
    ) -> list[str]:
        self.calls.append((prompt, vad))
        if self.patience is not None and len(self.heard) + len(clips) > self.patience:
            raise KeyboardInterrupt
        texts = [self.words[len(wav)] for wav, _ in clips]
        self.heard += texts
        return texts


def corpus(folder: Path, texts: Sequence[str | None], language: str = "en-us") -> tuple[Path, list[str]]:
    """A manifest whose utterance i has 3200 + i samples."""
    rows = []
    for index, text in enumerate(texts):
        path = save_wav(folder / f"u{index:03d}.wav", np.full(3200 + index, 0.1), RATE)
        rows.append(
            {
                "id": f"u{index:03d}",
                "path": str(path),
                "speaker": "s",
                "text": text,
                "language": language,
                "split": "train",
                "seconds": (3200 + index) / RATE,
                "sample_rate": RATE,
                "channels": 1,
                "digest": str(index),
            }
        )
    return write_table(rows, MANIFEST, folder / "manifest.parquet"), [row["id"] for row in rows]


def run(folder: Path, manifest: Path, ear: Ear, **changes: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    config = TranscribeConfig.model_validate({"max_reject_rate": 0.9} | changes)
    figures = transcribe(config, manifest, folder / "out", folder / "work", recogniser=ear, progress=False)
    kept = {row["id"]: row for row in read_rows(folder / "out/transcripts.parquet", TRANSCRIPTS)}
    rejects = {row["id"]: row for row in read_rows(folder / "out/rejects.parquet", REJECTS)}
    assert figures["kept"] == len(kept) and sum(figures["rejected"].values()) == len(rejects)
    return kept, rejects, figures


def test_given_texts_are_checked_and_others_recognised(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["Seven, three.", "one two", None, None, "...", "739", "it's 5"])
    said = ["seven three", "good morning", "Hello there", " ...", "x", "seven three nine", ""]
    ear = Ear(dict(enumerate(said, 3200)))
    kept, rejects, figures = run(tmp_path, manifest, ear, prompt="digits", max_cer=0.3)
    assert kept["u000"] == {
        "id": "u000",
        "text": "Seven, three.",
        "origin": "given",
        "recognised": "seven three",
        "cer": 0.0,
    }
    assert (kept["u002"]["text"], kept["u002"]["origin"], kept["u002"]["cer"]) == ("Hello there", "recognised", None)
    assert {name: row["rule"] for name, row in rejects.items()} == {
        "u001": "cer",
        "u003": "no_speech",
        "u004": "no_words",
        "u005": "cer",
        "u006": "cer",
    }
    assert "good morning" in rejects["u001"]["value"] and rejects["u001"]["threshold"] == "0.3"
    assert (figures["given"], figures["recognised"], figures["verified"]) == (1, 1, 4)
    assert 0 < figures["mean_cer"] <= 1
    # Recordings without a text are cut into speech first, known short clips are not.
    assert set(ear.calls) == {("digits", False), ("digits", True)}


def test_cer_reads_digits_as_the_speaker_did() -> None:
    assert character_error_rate("seven three nine", "7 3 9", "en-us") == 0
    assert character_error_rate("seven three nine", "739", "en-us") == 0
    assert character_error_rate("fourteen fifty five", "1455.", "en-us") == 0
    assert character_error_rate("one", "", "en-us") == 1
    assert character_error_rate("abcd", "abxd", "en-us") == 0.25


def test_verify_fraction_is_a_choice_by_id(tmp_path: Path) -> None:
    manifest, ids = corpus(tmp_path, ["one"] * 60)
    ears = [Ear(dict.fromkeys(range(3200, 3260), "one")) for _ in range(3)]
    chosen = []
    for ear, share in zip(ears, (0.0, 0.3, 0.6), strict=True):
        kept, _, figures = run(tmp_path, manifest, ear, verify_fraction=share)
        assert set(kept) == set(ids) and figures["verified"] == len(ear.heard)
        chosen.append({name for name, row in kept.items() if row["cer"] is not None})
    assert not chosen[0] and 5 < len(chosen[1]) < len(chosen[2]) < 55 and chosen[1] < chosen[2]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    manifest, ids = corpus(tmp_path, ["one"] * 20)
    words = dict.fromkeys(range(3200, 3220), "one")
    settings = {"recogniser": {"batch_size": 1}}  # four clips reach the journal at a time
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, manifest, Ear(words, patience=10), **settings)
    (journal,) = (tmp_path / "work").glob("transcribe-*/heard.jsonl")
    assert len(journal.read_text().splitlines()) == 8
    with journal.open("a") as file:
        file.write('{"id": "u0')  # what a kill leaves
    ear = Ear(words)
    kept, _, _ = run(tmp_path, manifest, ear, **settings)
    assert len(ear.heard) == 12 and set(kept) == set(ids)
    assert not list((tmp_path / "work").glob("*")) or not (tmp_path / "work").exists()


def test_other_parameters_do_not_use_the_old_journal(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["one"] * 8)
    words = dict.fromkeys(range(3200, 3208), "one")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, manifest, Ear(words, patience=4), recogniser={"batch_size": 1})
    ear = Ear(words)
    run(tmp_path, manifest, ear, recogniser={"batch_size": 1}, prompt="another")
    assert len(ear.heard) == 8


def test_a_recording_that_vanished_costs_itself_only(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["one"] * 3)
    (tmp_path / "u001.wav").write_bytes(b"")
    kept, rejects, _ = run(tmp_path, manifest, Ear(dict.fromkeys(range(3200, 3203), "one")))
    assert set(kept) == {"u000", "u002"} and rejects["u001"]["rule"] == "unreadable"


def test_too_many_rejects_fail_with_what_was_heard(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["one two three"] * 2)
    with pytest.raises(RejectRateError, match="zebra"):
        run(tmp_path, manifest, Ear({3200: "one two three", 3201: "zebra"}), max_reject_rate=0.4)


def test_phones_and_tokenizer(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["7", "Two!", "?!", None])
    rows = [
        {"id": f"u{i:03d}", "text": text, "origin": "given", "recognised": None, "cer": None}
        for i, text in enumerate(["7", "Two!", "?!"])
    ]
    transcripts = write_table(rows, TRANSCRIPTS, tmp_path / "transcripts.parquet")
    out = tmp_path / "phones"
    figures = phonemize(PhonemizeConfig(max_reject_rate=0.5), manifest, transcripts, out, progress=False)
    assert figures["kept"] == 2 and figures["rejected"] == {"no_words": 1}
    rows = read_rows(out / "phones.parquet", PHONES)
    assert [(row["id"], row["text"]) for row in rows] == [("u000", "seven"), ("u001", "two")]
    assert rows[0]["phones"] == ["s", "ˈɛ", "v", "ə", "n"]
    assert [row["id"] for row in read_rows(out / "rejects.parquet", REJECTS)] == ["u002"]
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    assert set(tokenizer.phones) == {p for row in rows for p in row["phones"]}
    assert len(tokenizer.phones) == figures["phones"]


def test_phones_follow_the_languages_of_the_manifest(tmp_path: Path) -> None:
    manifest, _ = corpus(tmp_path, ["zwei"], language="de")
    rows = [{"id": "u000", "text": "2", "origin": "given", "recognised": None, "cer": None}]
    transcripts = write_table(rows, TRANSCRIPTS, tmp_path / "transcripts.parquet")
    phonemize(PhonemizeConfig(), manifest, transcripts, tmp_path / "out", progress=False)
    assert read_rows(tmp_path / "out/phones.parquet", PHONES)[0]["phones"] == ["ts", "v", "ˈaɪ"]
