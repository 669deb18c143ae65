"""What a recogniser makes up is named by the rule that it breaks; what people say passes."""

from __future__ import annotations

import pytest

from vall_e.corpus.transcription.hallucinations import Evidence, invented, listed_phrase, longest_loop
from vall_e.corpus.transcription.languages import espeak_language
from vall_e.preparation import HallucinationConfig

GOOD = Evidence(seconds=3.0, no_speech=0.05, log_prob=-0.2, compression=1.2)


@pytest.mark.parametrize(
    ("text", "language", "evidence", "rule"),
    [
        ("The invention of movable metal letters.", "en-us", GOOD, None),
        ("Six, six, six, six.", "en-us", GOOD, None),
        ("six " * 5, "en-us", GOOD, "loop"),
        ("and so on " * 5, "en-us", GOOD, "loop"),
        ("Thanks for watching!", "en-us", GOOD, "phrase"),
        ("Thanks for watching! Thanks for watching.", "en-gb", GOOD, "phrase"),
        ("He said thanks for watching the house.", "en-us", GOOD, None),
        ("Subtitles by the Amara.org community", "en-us", GOOD, "phrase"),
        ("Vielen Dank fürs Zuschauen.", "de", GOOD, "phrase"),
        ("字幕由 Amara.org 社区提供", "cmn", GOOD, "phrase"),
        ("you", "en-us", Evidence(12.0, None, None, None), "chars_per_second"),
        ("a text much too long for it", "en-us", Evidence(0.3, None, None, None), "chars_per_second"),
        ("good words", "en-us", Evidence(2.0, 0.9, -0.2, 1.0), "no_speech_probability"),
        ("good words", "en-us", Evidence(2.0, 0.1, -1.4, 1.0), "log_probability"),
        ("good words", "en-us", Evidence(2.0, 0.1, -0.2, 3.0), "compression"),
        ("good words", "en-us", Evidence(2.0, None, None, None), None),
    ],
)
def test_rules(text, language, evidence, rule):
    found = invented(text, language, evidence, HallucinationConfig())
    assert (found and found[0]) == rule
    assert found is None or all(found)


def test_limits_are_parameters():
    strict = HallucinationConfig(max_repeats=1, phrases=False)
    assert invented("two two birds", "en-us", GOOD, strict)[0] == "loop"
    assert invented("Thanks for watching!", "en-us", GOOD, strict) is None


def test_loops_are_found_wherever_they_are():
    assert longest_loop(["well", "I", "I", "I", "think"]) == (("I",), 3)
    assert longest_loop(["a", "b", "c", "a", "b", "c", "a", "b"])[1] == 2
    assert longest_loop(["one", "two", "three"])[1] == 1
    assert longest_loop([]) == ((), 0)
    assert listed_phrase([], "en-us") is None


def test_codes_of_languages():
    assert espeak_language("en", "en-gb") == "en-gb" and espeak_language("en", "de") == "en-us"
    assert espeak_language("zh", "en-us") == "cmn" and espeak_language("zh", "cmn") == "cmn"
    assert espeak_language("de", "en-us") == "de" and espeak_language("bo", "en-us") is None


def test_every_language_that_whisper_knows_has_a_voice_or_is_known_to_have_none():
    from pathlib import Path

    from faster_whisper.tokenizer import _LANGUAGE_CODES

    from vall_e.text.espeak import data_path

    voices = {
        line.split()[1]
        for file in (Path(data_path()) / "lang").rglob("*")
        if file.is_file()
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith("language ")
    }
    for code in _LANGUAGE_CODES:
        found = espeak_language(code, "xx")
        assert found in voices if found else code not in voices, (code, found)
