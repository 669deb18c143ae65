"""The demo corpus: valid specifications only, the same bytes each time, words of the vocabulary only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vall_e.config import ConfigError
from vall_e.corpus.demo import DIGITS, DemoSpec, Voice, read_spec, speak, utterances

FEMALE = Voice(name="f", voice="en-us+f1", rate=140, pitch=55)
MALE = Voice(name="m", voice="en-us+klatt4", rate=130, pitch=40, gap=4)


def spec(**changes: object) -> DemoSpec:
    values = {
        "voices": (FEMALE, MALE),
        "words": {"color": ("green", "black")},
        "templates": ("the {color} door",),
        "digit_strings": 5,
        "sentences": 2,
    }
    return DemoSpec.model_validate(values | changes)


def test_the_projects_corpus(project_root: Path) -> None:
    corpus = read_spec(project_root / "conf/demo-corpus.yaml")
    assert len(corpus.voices) >= 8 and sum(voice.test for voice in corpus.voices) == 2
    assert len({voice.voice for voice in corpus.voices}) == len(corpus.voices)
    said = list(utterances(corpus))
    assert 700 <= len(said) <= 900 and len({u.id for u in said}) == len(said)
    assert {word for u in said for word in u.text.split()} == set(corpus.vocabulary())
    lengths = {len(u.text.split()) for u in said if set(u.text.split()) <= set(DIGITS)}
    assert lengths == {1, 2, 3, 4, 5}
    for voice in corpus.voices:
        assert speak(voice, "one")[0].size > 2000


def test_texts_of_a_voice_do_not_depend_on_the_others() -> None:
    both, alone = list(utterances(spec())), list(utterances(spec(voices=(MALE,))))
    assert [u for u in both if u.voice == MALE] == alone
    assert [u.text for u in utterances(spec(seed=1))] != [u.text for u in both]


def test_no_voice_says_a_text_twice_and_small_sets_of_texts_end() -> None:
    said = list(utterances(spec(sentences=50)))
    assert len({(u.voice.name, u.text) for u in said}) == len(said)
    assert sum("door" in u.text for u in said) == 2 * 2


def test_speech_is_deterministic_whatever_was_said_before() -> None:
    first, rate = speak(FEMALE, "seven three nine")
    speak(MALE, "open the green window")
    again, _ = speak(FEMALE, "seven three nine")
    assert np.array_equal(first, again)
    assert first.dtype == np.float32 and 0.05 < np.abs(first).max() <= 1.0
    assert 0.5 < first.size / rate < 3


def test_every_voice_of_the_project_is_the_same_in_another_process(project_root: Path) -> None:
    code = (
        "import hashlib; from vall_e.corpus.demo import read_spec, speak\n"
        "for voice in read_spec('conf/demo-corpus.yaml').voices:\n"
        "    print(voice.name, hashlib.sha256(speak(voice, 'seven three nine')[0].tobytes()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(3)
    }
    assert len(outputs) == 1 and outputs.pop().count("\n") >= 8


def test_memory_stays_flat() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    for _ in range(20):
        speak(MALE, "one")
    before = resident()
    for _ in range(60):
        speak(MALE, "one")
    assert resident() - before < 15e6


def test_voice_parameters_are_heard() -> None:
    text = "seven three nine"
    plain, rate = speak(FEMALE, text)
    slow, high, gaps = (FEMALE.model_copy(update=change) for change in ({"rate": 90}, {"pitch": 90}, {"gap": 30}))
    assert speak(slow, text)[0].size > 1.2 * plain.size
    assert speak(gaps, text)[0].size > plain.size + 0.3 * rate
    assert not np.array_equal(speak(high, text)[0][: plain.size], plain)


@pytest.mark.parametrize("name", ["xx-nowhere", "en-us+nosuchvariant"])
def test_an_unknown_voice_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=name.replace("+", r"\+")):
        speak(Voice(name="x", voice=name), "one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("voices: []", "voices"),
        ("voices: [{name: a, voice: en-us}]\ncolour: 1", "colour"),
        ("voices: [{name: a, voice: en-us}]\ntemplates: ['the {thing}']", "thing"),
        ("voices: [{name: a, voice: en-us}, {name: a, voice: en-us}]\nsentences: 0", "two voices"),
        ("voices: [{name: a, voice: en-us}]", "no templates"),
        ("voices: [{name: ../a, voice: en-us}]\nsentences: 0", "name"),
    ],
)
def test_a_wrong_specification_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "corpus.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_spec(path)
    assert "corpus.yaml" in str(caught.value)
