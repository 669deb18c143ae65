"""The named normalisers: what each calls an error, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vall_e.config import parse_params
from vall_e.evaluation.error_rates import word_errors
from vall_e.evaluation.normalisers import ABOUT, Normaliser, NormaliserError

WRITTEN, HEARD = "Mr. Smith won't pay $5, um, at 7.", "mister smith will not pay five dollars at seven"


def errors(name: str, written: str, heard: str, language: str = "en-us", spellings: Path | None = None) -> int:
    return word_errors(*Normaliser(name, spellings).words(written, heard, language)).errors


def test_each_name_has_its_own_idea_of_an_error() -> None:
    assert errors("whisper", WRITTEN, HEARD) == 0
    assert errors("spoken", WRITTEN, HEARD) == 3  # "won't" is two words, "um" one that is missing
    assert errors("none", WRITTEN, HEARD) == 7  # all but "pay" (one more would be the cap, 8)
    assert errors("none", "As it is.", "As it is.") == errors("spoken", "As it is.", "as it is") == 0


def test_whispers_numbers_are_figures_and_ours_words() -> None:
    whisper, spoken = (Normaliser(n).words("seven three nine", "739", "en-us") for n in ("whisper", "spoken"))
    assert whisper == (["739"], ["739"]) and spoken == (["seven", "three", "nine"],) * 2


def test_languages_without_spaces_are_compared_by_character_and_others_by_the_basic_normaliser() -> None:
    assert Normaliser("whisper").words("你好，世界", "你好世界", "cmn")[1] == ["你", "好", "世", "界"]
    assert errors("whisper", "你好世界", "你好世间", "cmn") == 1
    assert errors("whisper", "Wie geht's? (laut)", "wie geht s", "de") == 0


def test_ours_compares_letters_there_too() -> None:
    spoken = Normaliser("spoken")
    assert spoken.words("今天。", "今天 GPT", "zh")[1] == ["今", "天", "g", "p", "t"]
    assert spoken.words("สวัสดี", "สวัสดี", "th")[0] == ["ส", "วั", "ส", "ดี"]
    assert spoken.words("二三", "23", "cmn") == (["二", "三"], ["二", "三"])
    assert spoken.words("two words", "two words", "en-us")[0] == ["two", "words"]


def test_spellings_are_read_from_a_tokenizers_file(tmp_path: Path) -> None:
    path = tmp_path / "normalizer.json"
    path.write_text(json.dumps({"colour": "color"}))
    assert errors("whisper", "the colour", "the color") == 1
    assert errors("whisper", "the colour", "the color", spellings=path) == 0
    path.write_text("[1]")
    for wrong in (tmp_path / "none.json", path):
        Normaliser("whisper")
        with pytest.raises(NormaliserError, match=r"evaluate\.spellings .*normalizer\.json"):
            _fresh(wrong)
    with pytest.raises(ValueError, match="normaliser: whisper only"):
        parse_params({"evaluate": {"spellings": "x.json"}})


def _fresh(path: Path) -> Normaliser:
    from vall_e.evaluation import normalisers

    normalisers._spellings.cache_clear()
    return Normaliser("whisper", path)


def test_every_name_that_the_parameter_takes_is_described() -> None:
    for name in ABOUT:
        assert parse_params({"evaluate": {"normaliser": name}}).evaluate.normaliser == name
    with pytest.raises(ValueError, match="normaliser"):
        parse_params({"evaluate": {"normaliser": "house"}})
