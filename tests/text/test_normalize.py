"""Written text becomes spoken words."""

from __future__ import annotations

import pytest

from vall_e.text.normalize import normalize, words_for_scoring


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("7", "seven"),
        ("Seven, THREE -- nine!", "seven three nine"),
        ("it\u2019s \u201cfine\u201d", "it's fine"),
        ("In 1455, Mr. Smith", "in fourteen fifty five mister smith"),
        ("1,234,567", "one million two hundred and thirty four thousand five hundred and sixty seven"),
        ("3.14", "three point one four"),
        ("the 2nd of 21", "the second of twenty one"),
        ("$2.50 & 50%", "two dollars and fifty cents and fifty percent"),
        ("at 3:30", "at three thirty"),
        ("007", "zero zero seven"),
        ("12345678901234567890", "one two three four five six seven eight nine zero " * 2),
        ("-5 and b2b", "minus five and b two b"),
        ("\uff12\uff10 \u0663", "twenty three"),
        ("well-known 'quoted' rock'n'roll", "well known quoted rock'n'roll"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("\u2026 !? \n\t", ""),
        ("", ""),
    ],
)
def test_english(text: str, spoken: str) -> None:
    assert normalize(text, "en-us") == spoken.strip()


def test_other_languages_read_their_own_numbers() -> None:
    assert normalize("12.500 Äpfel, 3,5 kg", "de") == "zwölftausendfünfhundert äpfel drei komma fünf kg"
    assert normalize("21", "fr-fr") == "vingt et un"
    assert normalize("42 x", "xx") == "4 2 x"


@pytest.mark.parametrize("text", ["In 1455, Mr. Smith paid $2.50 for 12 books!", "it's 3:30", "x² + y₃ = ½", "№ 5 ™"])
def test_normalising_twice_changes_nothing_and_leaves_words_only(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert all(c.isalpha() or c in " '" for c in once)


def test_scoring_words() -> None:
    assert words_for_scoring("It's 739.") == ["its", "seven", "hundred", "and", "thirty", "nine"]
    assert words_for_scoring("It's 739.", digits_apart=True) == ["its", "seven", "three", "nine"]
    assert words_for_scoring(" ... ") == []
