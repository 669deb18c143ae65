"""Phones of espeak-ng, and its library out of the wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from vall_e.text import codes, espeak
from vall_e.text.codes import espeak_name
from vall_e.text.japanese import to_kana
from vall_e.text.normalize import normalize
from vall_e.text.phonemes import LanguageError, phonemize, read


def test_phones_words_and_stress() -> None:
    assert phonemize(["seven two"]) == [["s", "ˈɛ", "v", "ə", "n", " ", "t", "ˈuː"]]
    assert phonemize(["seven two"], with_stress=False) == [["s", "ɛ", "v", "ə", "n", " ", "t", "uː"]]
    assert phonemize(["zwei"], "de") == [["ts", "v", "ˈaɪ"]]


def test_words_apart_do_not_change_each_other() -> None:
    linked, apart = phonemize(["four eight"])[0], phonemize(["four eight"], words_apart=True)[0]
    assert apart == [*phonemize(["four"])[0], " ", *phonemize(["eight"])[0]]
    assert apart != linked


def test_a_text_in_a_batch_equals_the_text_alone() -> None:
    texts = ["open the green window", "", "  ", "one", "nine zero", "a\nline break"]
    assert phonemize(texts) == [phonemize([text])[0] for text in texts]
    assert phonemize(texts)[1] == phonemize(texts)[2] == []
    assert phonemize([]) == []


def test_an_unknown_language_names_its_neighbours() -> None:
    with pytest.raises(LanguageError, match=r"'en'.*en-us"):
        phonemize(["one"], "en")


def test_every_code_of_a_language_is_one_of_espeak_ngs() -> None:
    """And what espeak-ng calls a language stays as it is."""
    known = espeak.languages()
    assert all(espeak_name(name) in known for table in (codes._FORMS, codes._ISO) for name in table)
    plain = {name for name in known if "-" in name or name not in codes._FORMS}
    assert {espeak_name(name) for name in plain} == plain


@pytest.mark.parametrize(
    ("written", "kana"),
    [
        ("日本語", "にほんご"), ("学校", "がっこー"), ("大人の人", "おとな の ひと"), ("一人で", "ひとり で"),
        ("東京へ行きます", "とーきょー え いきます"), ("私は学生です", "わたし わ がくせいです"),
        ("今日は何曜日ですか", "きょー わ なんよーびですか"), ("こんにちは", "こんにちわ"), ("母は", "はは わ"),
        ("百円", "ひゃくえん"), ("三本", "さんぼん"), ("三時三十分", "さんじ さんじゅっぷん"), ("思う", "おもう"),
        ("行こう", "いこー"), ("時々", "ときどき"), ("AIの時代", "AI の じだい"), ("葛\U000e0100", "くず"), ("", ""),
    ],
)  # fmt: skip
def test_japanese_is_read_in_kana(written: str, kana: str) -> None:
    assert to_kana(written) == kana


def test_kanji_sound_like_their_kana_and_carry_no_stress() -> None:
    written = ["東京へ行きます", normalize("3時30分", "ja"), normalize("1,250円です", "ja")]
    spoken = ["とーきょー え いきます", "さんじ さんじゅっぷん", "せん にひゃく ごじゅー えんです"]
    assert phonemize(written, "ja") == phonemize(spoken, "ja")
    assert not any("ˈ" in phone for phones in phonemize(written, "ja") for phone in phones)
    assert "o̞o̞" in phonemize(["東京"], "ja")[0], "a long vowel is one phone"


def test_tones_are_tokens_and_none_are_alike() -> None:
    """espeak-ng's IPA shows the first digit of a tone: high and falling are both 5, rising is a vowel's sign."""
    (said,) = phonemize(["妈麻马骂吗"], "cmn")
    assert said == ["m", "ɑ", "55", " ", "m", "ɑ", "35", " ", "m", "ɑ", "214", " ", "m", "ɑ", "51", " ", "m", "ɑ", "11"]
    assert phonemize(["世界"], "cmn")[0] == ["s.", "i.", "51", " ", "tɕ", "iɛ", "51"]
    assert [p for p in phonemize(["詩史試時市事"], "yue")[0] if p.isdigit()] == list("123456")
    assert [p for p in phonemize(["má mà mả"], "vi")[0] if p.isdigit()] == ["3", "2", "4"]
    assert phonemize(["妈 麻"], "cmn", words_apart=True)[0] == said[:7]


@pytest.mark.parametrize(
    ("language", "text", "foreign", "unread"),
    [
        ("fr-fr", "bonjour le weekend", ("weekend",), ()),
        ("ru", "hello привет мир", ("hello",), ()),
        ("ru", "привет 東京", (), ("東京",)),
        ("en-us", "привет my friend", (), ("привет",)),
        ("en-us", "café naïve μ", (), ()),
        ("de", "grüße привет", (), ("привет",)),
        ("cmn", "你好 привет", (), ("привет",)),
        ("cmn", "竆", (), ("竆",)),
        ("ja", "𠮷野家", (), ("𠮷野家",)),
        ("ja", "日本のAI", ("AI",), ()),
        ("ko", "안녕하세요 세계", (), ()),
        ("hi", "नमस्ते दुनिया", (), ()),
        ("ar", "مرحبا بالعالم", (), ()),
        ("el", "καλημέρα", (), ()),
        ("he", "שלום", (), ()),
        ("th", "สวัสดี", (), ()),
    ],
)
def test_words_of_other_languages_and_scripts_are_told(language, text, foreign, unread) -> None:
    (reading,) = read([text], language)
    assert (reading.foreign, reading.unread) == (foreign, unread)
    assert not any("(" in phone for phone in reading.phones)
    assert read([text], language, words_apart=True)[0].unread == unread


@pytest.mark.slow
def test_memory_and_files_stay_flat_over_100000_utterances() -> None:
    """RSS after 100,000 texts is that after 10,000; phonemizer copies its library once a backend, not once a call."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    before = libraries = 0
    for batch in range(400):
        phonemize([normalize(f"Text {i} of {batch % 9}") for i in range(250)])
        if batch == 39:
            before, libraries = _resident(), _libraries()
    assert _resident() - before < 10e6
    assert _libraries() == libraries > 0


def test_memory_stays_flat() -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    phonemize(["warm up"] * 100)
    before = _resident()
    for round_ in range(20):
        phonemize([f"sentence {word} of round" for word in ("one", "two", "three")] * 50 + ["x" * (round_ + 1)])
    assert _resident() - before < 20e6


def _libraries() -> int:
    """Copies of espeak-ng's library in this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[-1] for line in lines if "libespeak" in line})


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_data_far_down_the_tree_are_copied_to_a_short_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    espeakng_loader = pytest.importorskip("espeakng_loader")
    deep = tmp_path / ("d" * 100) / ("e" * 100) / "espeak-ng-data"
    deep.mkdir(parents=True)
    (deep / "phontab").write_text("phones")
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep))
    path = espeak.data_path.__wrapped__()
    assert len(path) < 150 and (Path(path) / "phontab").read_text() == "phones"
