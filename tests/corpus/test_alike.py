"""Sounds that are alike, of one speaker and of two."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.corpus.test_fingerprints import coded, take
from tests.corpus.test_screen import Corpus
from vall_e.corpus import demo


def test_alike_voices_of_a_synthesiser_are_two_speakers_and_a_copy_under_another_name_is_a_copy(tmp_path: Path) -> None:
    """Two voices of the demo corpus say a sentence: as alike as a bad copy, were they one speaker."""
    said = "close kitchen five"
    corpus = Corpus(tmp_path)
    for name, kind in (("frank", "edward"), ("louis", "adam")):
        wav, rate = demo.speak(demo.Voice(name=name, voice=f"en-us+{kind}", rate=140, pitch=50, gap=4), said)
        corpus.add(name, np.asarray(wav, np.float32), rate, speaker=name, text=said)
    corpus.add("stolen", coded(take(2, 0), "MP3")[0], speaker="s1", text="word 2")
    rows, rejects, _ = corpus.run(split={"test_speakers": ["louis"]})
    assert {row["rule"] for row in rejects.values()} == {"near_duplicate"} and rejects.keys() <= {"stolen", "u02"}
    assert rejects and {rows[name]["split"] for name in rows if rows[name]["speaker"] == "louis"} == {"test"}
    assert rows["frank"]["split"] != "test"
    for row in corpus.texts + corpus.recordings:
        row["speaker"] = "frank" if row["speaker"] == "louis" else row["speaker"]
    _, rejects, _ = corpus.run("one")
    assert {"frank", "louis"} & rejects.keys()
