"""Long text in pieces: nothing is lost, nothing is too long, and it is cut where a reader would pause."""

from __future__ import annotations

import numpy as np
import pytest

from vall_e.generation.chunks import Chunk, Mark, cut, cut_phones, marked


def letters(texts):
    """A phone a letter or digit, words apart."""
    words = [["".join(c for c in word if c.isalnum()) for word in text.split()] for text in texts]
    return [list(" ".join(filter(None, row))) for row in words]


def pieces(text: str, longest: int) -> list[str]:
    return [chunk.text for chunk in cut(text, longest, letters)]


def test_sentences_end_where_they_end_and_not_in_numbers_titles_initials_or_words():
    text = (
        'Dr. J. R. Smith paid $3.50, at 3:30 p.m. on the 1,000th day. "Why?" he asked. It is e.g. a.b.c! See www.x.org '
        "… Then: no — never"
    )
    found = [(part.strip(), mark.name) for part, mark in marked(text)]
    assert found == [
        ("Dr. J. R. Smith paid $3.50,", "CLAUSE"), ("at 3:30 p.m. on the 1,000th day.", "SENTENCE"),
        ('"Why?"', "CLAUSE"), ("he asked.", "SENTENCE"), ("It is e.g. a.b.c!", "SENTENCE"),
        ("See www.x.org …", "SENTENCE"), ("Then:", "CLAUSE"), ("no —", "CLAUSE"), ("never", "PARAGRAPH"),
    ]  # fmt: skip
    assert "".join(part for part, _ in marked(text)) == text
    small = [(part.strip(), mark.name) for part, mark in marked("one two. three! dr. no. a")]
    assert small == [("one two.", "SENTENCE"), ("three!", "SENTENCE"), ("dr. no. a", "PARAGRAPH")]


def test_scripts_without_spaces_and_other_marks_are_read():
    assert [m for _, m in marked("你好，世界。今天！")] == [Mark.CLAUSE, Mark.SENTENCE, Mark.PARAGRAPH]
    assert [m for _, m in marked("क्या? हाँ। नहीं")] == [Mark.SENTENCE, Mark.SENTENCE, Mark.PARAGRAPH]
    assert [m for _, m in marked("هل؟ نعم، لا")] == [Mark.SENTENCE, Mark.CLAUSE, Mark.PARAGRAPH]
    assert [(p, m.name) for p, m in marked("a b\nc.\n \nD")] == [("a b\nc.", "PARAGRAPH"), ("D", "PARAGRAPH")]


def test_what_fits_is_spoken_at_once_and_what_does_not_is_cut_at_the_best_place():
    assert pieces("One two, three four.", 40) == ["One two, three four."]
    assert pieces("Aaaa bbbb cccc. Dddd eeee ffff.", 16) == ["Aaaa bbbb cccc.", "Dddd eeee ffff."]
    assert pieces("Aaaa bbbb, cccc dddd eeee ffff.", 20) == ["Aaaa bbbb,", "cccc dddd eeee ffff."]
    words = pieces("aaaa bbbb cccc dddd eeee ffff", 20)  # halves, not 20 and 9
    assert words == ["aaaa bbbb cccc", "dddd eeee ffff"]
    assert pieces("Hi.\n\nHo.", 40) == ["Hi.", "Ho."]  # a paragraph's pause is never inside


def test_a_word_longer_than_all_is_cut_by_its_phones_and_stays_whole_in_order():
    found = cut("ab " + "x" * 23 + " cd", 10, letters)
    assert [len(chunk.phones) for chunk in found] == [2, 7, 8, 8, 2]
    assert "".join("".join(chunk.phones) for chunk in found) == "ab" + "x" * 23 + "cd"
    assert "".join(chunk.text for chunk in found).replace(" ", "") == "ab" + "x" * 23 + "cd"
    chinese = cut("一二三四五六七八九十一二", 5, letters)
    assert [chunk.text for chunk in chinese] == ["一二三四", "五六七八", "九十一二"]


def test_punctuation_alone_is_nothing_to_say_and_goes_with_its_neighbour():
    assert cut("... !? \n\n —", 10, letters) == [] == cut("", 10, letters)
    found = cut("... aaaa bbbb! ?! \n\n ... Cccc", 9, letters)
    assert [(chunk.text, chunk.mark) for chunk in found] == [
        ("... aaaa bbbb! ?!", Mark.PARAGRAPH), ("... Cccc", Mark.PARAGRAPH),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_and_nothing_too_long_in_random_text(seed: int):
    rng = np.random.default_rng(seed)
    marks = ["", "", "", ",", ".", "!", " -", "\n\n", ";", "...", "?"]
    words = ["".join(rng.choice(list("abcXY3"), size=rng.integers(1, 14))) for _ in range(80)]
    text = " ".join(word + rng.choice(marks) for word in words)
    longest = int(rng.integers(5, 40))
    found = cut(text, longest, letters)
    assert all(0 < len(chunk.phones) <= longest for chunk in found)
    assert "".join(p for chunk in found for p in chunk.phones).replace(" ", "") == "".join(words)
    assert "".join("".join(chunk.text for chunk in found).split()) == "".join(text.split())


def test_phones_are_cut_at_the_gaps_between_words():
    phones = [*"abc", " ", "ˈdd", "e", " ", *"fghi"]
    assert cut_phones(phones, 20) == [Chunk("abc ˈdde fghi", tuple(phones), Mark.PARAGRAPH)]
    assert [chunk.phones for chunk in cut_phones(phones, 6)] == [(*"abc", " ", "ˈdd", "e"), tuple("fghi")]
    assert cut_phones([" "], 5) == []


def test_phones_may_be_many_without_a_gap_and_gaps_many_without_a_phone():
    many = ("a",) * 47
    chunks = cut_phones(many, 10)
    assert sum((chunk.phones for chunk in chunks), ()) == many and max(len(chunk.phones) for chunk in chunks) <= 10
    assert cut_phones([" ", "a", " ", " ", "b", " "], 20) == [Chunk("a b", ("a", " ", "b"), Mark.PARAGRAPH)]
    alike = ("t", "ʃ", " ", "tʃ")
    assert cut_phones(alike, 20) == [Chunk("tʃ tʃ", alike, Mark.PARAGRAPH)]
    parts = cut_phones(("tʃ", "t", "ʃ") * 9, 8)
    assert sum((part.phones for part in parts), ()) == ("tʃ", "t", "ʃ") * 9
    assert [part.text for part in parts] == ["".join(part.phones) for part in parts]
