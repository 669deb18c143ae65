"""Phones and ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from vall_e.text.tokenizer import BOS, EOS, PAD, Tokenizer, UnknownPhoneError

CORPUS = [["s", "ˈɛ", " ", "n"], ["t", "ˈuː"], []]


def test_ids_are_stable_and_reversible() -> None:
    tokenizer = Tokenizer.fit(CORPUS)
    assert tokenizer == Tokenizer(sorted({p for phones in CORPUS for p in phones}, reverse=True))
    assert (PAD, BOS, EOS) == (0, 1, 2) and len(tokenizer) == 3 + 6
    assert sorted(tokenizer.encode(list(tokenizer.phones))) == list(range(3, 9))
    for phones in CORPUS:
        assert tokenizer.decode(tokenizer.encode(phones)) == phones
    assert tokenizer.decode([BOS, *tokenizer.encode(["t"]), EOS, PAD]) == ["t"]


def test_unknown_phones_are_named() -> None:
    with pytest.raises(UnknownPhoneError, match=r"'q'.*'z'") as caught:
        Tokenizer.fit(CORPUS).encode(["s", "z", "q", "z"])
    assert "'s'" not in str(caught.value)
    with pytest.raises(UnknownPhoneError):
        Tokenizer.fit(CORPUS).encode(["<pad>"])
    with pytest.raises(ValueError, match="99"):
        Tokenizer.fit(CORPUS).decode([99])


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tokenizer.json"
    Tokenizer.fit(CORPUS).save(path)
    assert Tokenizer.load(path) == Tokenizer.fit(CORPUS)
    path.write_text('{"words": []}')
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.load(path)


def test_the_gap_between_words_is_always_known() -> None:
    """Clips of single words are joined by a loader: their tokenizer never saw a gap."""
    assert Tokenizer(["a", "b"]).encode(["a", " ", "b"]) == [3, PAD, 4]
    assert Tokenizer(["a", " "]).encode([" "]) == [3]


def test_a_new_language_keeps_the_old_ids(tmp_path: Path) -> None:
    old = Tokenizer.fit(CORPUS)
    new = old.extend(["ʒ", "a", "t", "<pad>", "a"])
    assert new.phones == (*old.phones, "a", "ʒ") and len(old) == 9
    assert all(new.encode([phone]) == old.encode([phone]) for phone in old.phones)
    assert new != old and new != Tokenizer(new.phones), "ids count, not the set"
    new.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").phones == new.phones
    assert new.extend(["a"]) == new and new.extend(["b"]).encode(["ʒ"]) == new.encode(["ʒ"])
    (tmp_path / "tokenizer.json").write_text('{"phones": ["a", "b", "a"]}')
    with pytest.raises(ValueError, match="twice"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_validate_lists_unknown_phones_with_counts_and_examples() -> None:
    found = Tokenizer(["s", "t"]).validate(
        [("one", ["s", "q", " "]), ("two", ["q", "z", "q"]), ("three", ["a", "<pad>"])]
    )
    assert [(u.phone, u.count, u.example) for u in found] == [
        ("q", 3, "one"), ("<pad>", 1, "three"), ("a", 1, "three"), ("z", 1, "two"),
    ]  # fmt: skip
    assert Tokenizer(["s"]).validate([("one", ["s", " "])]) == []
