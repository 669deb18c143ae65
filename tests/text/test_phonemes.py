"""Phones of espeak-ng, and its library out of the wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from vall_e.text import espeak
from vall_e.text.phonemes import LanguageError, phonemize


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


def test_memory_stays_flat() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    phonemize(["warm up"] * 100)
    before = resident()
    for round_ in range(20):
        phonemize([f"sentence {word} of round" for word in ("one", "two", "three")] * 50 + ["x" * (round_ + 1)])
    assert resident() - before < 20e6


def test_data_far_down_the_tree_are_copied_to_a_short_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    espeakng_loader = pytest.importorskip("espeakng_loader")
    deep = tmp_path / ("d" * 100) / ("e" * 100) / "espeak-ng-data"
    deep.mkdir(parents=True)
    (deep / "phontab").write_text("phones")
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep))
    path = espeak.data_path.__wrapped__()
    assert len(path) < 150 and (Path(path) / "phontab").read_text() == "phones"
