"""The phonemize stage: languages of their own, rejects, the same bytes however it is run, tokenizers that go on."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from vall_e.corpus import phonemize as stage
from vall_e.corpus.phonemize import phonemize
from vall_e.corpus.quality import RejectRateError
from vall_e.corpus.schema import PHONES, REJECTS, UTTERANCES, read_rows, write_table
from vall_e.preparation import ExecutorConfig, PhonemizeConfig
from vall_e.text.tokenizer import Tokenizer

TEXTS = {
    "u0": ("en-us", "7"), "u1": ("en-us", "Two!"), "u2": ("de", "2"), "u3": ("ja", "東京"), "u4": ("cmn", "妈骂"),
    "u5": ("fr-fr", "le weekend"), "x0": ("en-us", "?!"), "x1": ("en-us", "привет two"),
}  # fmt: skip
FILES = ("phones.parquet", "rejects.parquet", "tokenizer.json")


def table(path: Path, texts: dict[str, tuple[str, str]]) -> Path:
    same = {
        "path": "a.wav",
        "start": 0.0,
        "end": 1.0,
        "group": None,
        "speaker": "s",
        "origin": "given",
        "split": "train",
    }
    same |= {"seconds": 1.0, "sample_rate": 16_000, "channels": 1, "digest": "0"}
    rows = [{"id": n, "recording": n, "language": lang, "text": text, **same} for n, (lang, text) in texts.items()]
    return write_table(rows, UTTERANCES, path / "manifest.parquet")


def run(
    folder: Path, manifest: Path, out: str = "out", executor: ExecutorConfig | None = None, **settings: Any
) -> dict[str, Any]:
    config = PhonemizeConfig(**{"max_reject_rate": 0.5} | settings)
    return phonemize(config, manifest, folder / out, executor or ExecutorConfig(), folder / ".work", False)


def test_each_utterance_is_read_in_its_own_language(tmp_path: Path) -> None:
    figures = run(tmp_path, table(tmp_path, TEXTS))
    rows = {row["id"]: row for row in read_rows(tmp_path / "out/phones.parquet", PHONES)}
    assert list(rows) == ["u0", "u1", "u2", "u3", "u4", "u5"]
    assert rows["u0"]["text"] == "seven" and rows["u0"]["phones"] == ["s", "ˈɛ", "v", "ə", "n"]
    assert rows["u2"]["text"] == "zwei" and rows["u2"]["phones"] == ["ts", "v", "ˈaɪ"]
    assert rows["u3"]["phones"] == ["t", "o̞o̞", "kʲ", "o̞o̞"]
    assert rows["u4"]["phones"] == ["m", "ɑ", "55", " ", "m", "ɑ", "51"]
    assert figures["kept"] == 6 and figures["rejected"] == {"no_words": 1, "unread_letters": 1}
    assert figures["foreign"] == 1 and figures["foreign_words"] == "weekend"
    tokenizer = Tokenizer.load(tmp_path / "out/tokenizer.json")
    assert set(tokenizer.phones) == {p for row in rows.values() for p in row["phones"]}
    assert len(tokenizer.phones) == figures["phones"] and not (tmp_path / ".work").exists()


def test_a_reject_says_which_word_cannot_be_read(tmp_path: Path) -> None:
    run(tmp_path, table(tmp_path, TEXTS))
    rejects = {row["id"]: row for row in read_rows(tmp_path / "out/rejects.parquet", REJECTS)}
    assert (rejects["x1"]["rule"], rejects["x1"]["value"]) == ("unread_letters", "привет")
    assert rejects["x1"]["threshold"] == "letters that en-us is written in" and rejects["x0"]["rule"] == "no_words"
    with pytest.raises(RejectRateError, match=r"unread_letters 1, for example x1: привет"):
        run(tmp_path, table(tmp_path, TEXTS), max_reject_rate=0.1)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    words = ["one", "two", "green", "window", "7", "$2.50"]
    texts = {
        f"u{i:03d}": ("de" if i % 5 == 0 else "en-us", " ".join(random.Random(i).choices(words, k=3)))
        for i in range(40)
    }
    return table(tmp_path, dict(random.Random(0).sample(sorted(texts.items()), 40)))


def test_the_same_bytes_with_any_number_of_workers_and_any_shards(tmp_path, many, monkeypatch) -> None:
    run(tmp_path, many, "whole")
    monkeypatch.setattr(stage, "SHARD", 7)
    run(tmp_path, many, "shards")
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes(), name


def test_two_workers_leave_the_same_bytes(tmp_path, many) -> None:
    texts = {f"u{i:04d}": ("en-us", f"text {i}") for i in range(stage.SHARD + 20)}
    manifest = table(tmp_path, texts)
    for workers in (1, 2):
        run(tmp_path, manifest, f"out{workers}", ExecutorConfig(workers=workers))
    for name in FILES:
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes(), name


def test_a_run_that_was_stopped_redoes_no_finished_shard(tmp_path, many, monkeypatch) -> None:
    monkeypatch.setattr(stage, "SHARD", 8)
    run(tmp_path, many, "whole")
    normalized: list[str] = []

    def stopped(text: str, language: str) -> str:
        if len(normalized) == 20:
            raise KeyboardInterrupt
        normalized.append(text)
        return plain(text, language)

    plain = stage.normalize
    monkeypatch.setattr(stage, "normalize", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, many, "resumed")
    monkeypatch.setattr(stage, "normalize", lambda text, language: normalized.append(text) or plain(text, language))
    run(tmp_path, many, "resumed")
    assert len(normalized) == 20 + 24, "two of five shards were done"
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes(), name


def _deadly(text: str, language: str, plain: Any = stage.normalize) -> str:
    return os._exit(9) if text == "seven green" else plain(text, language)


def _shard_deadly(*arguments: Any) -> None:
    """A shard's work, in a worker, with a text that ends the process."""
    stage.normalize = _deadly
    _plain_shard(*arguments)


_plain_shard = stage._shard


@pytest.mark.slow
def test_a_text_that_kills_its_worker_is_a_reject_and_the_others_are_read(tmp_path: Path, monkeypatch) -> None:
    texts = {f"u{i}": ("en-us", f"text {i}") for i in range(5)}
    run(tmp_path, table(tmp_path, texts), "plain")
    manifest = table(tmp_path, texts | {"u2x": ("en-us", "seven green")})
    monkeypatch.setattr(stage, "SHARD", 3)
    monkeypatch.setattr(stage, "_shard", _shard_deadly)
    figures = run(tmp_path, manifest, executor=ExecutorConfig(workers=2))
    assert figures["kept"] == 5 and figures["rejected"] == {"poisoned": 1}
    (row,) = read_rows(tmp_path / "out/rejects.parquet", REJECTS)
    assert (row["id"], row["rule"], row["value"]) == ("u2x", "poisoned", "its worker died: exit code 9")
    for name in ("phones.parquet", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name


def test_a_voice_s_tokenizer_goes_on(tmp_path: Path) -> None:
    old = Tokenizer(["z", "s", "ˈɛ", "v", "ə", "n"])
    old.save(tmp_path / "tokenizer.json")
    manifest = table(tmp_path, {"a": ("en-us", "seven"), "b": ("en-us", "two two")})
    figures = run(tmp_path, manifest, tokenizer=str(tmp_path / "tokenizer.json"))
    new = Tokenizer.load(tmp_path / "out/tokenizer.json")
    assert new.phones[:6] == old.phones and set(new.phones[6:]) == {" ", "t", "ˈuː"}
    assert figures["new_phones"] == 2 and "t 2 (two two)" in figures["new_phones_are"]
