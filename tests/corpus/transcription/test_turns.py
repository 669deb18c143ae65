"""Words get the speaker who speaks during them. The pipeline is a stand-in that answers as WhisperX's does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vall_e.audio import save_wav
from vall_e.corpus.transcription.pauses import Spoken
from vall_e.corpus.transcription.turns import DiariserError, PyannoteDiariser, diarise, speakers_of
from vall_e.preparation import DiariseConfig


class Pipeline:
    def __init__(self) -> None:
        self.asked = {}

    def __call__(self, audio, **limits):
        assert audio.dtype == np.float32 and audio.ndim == 1
        self.asked = limits
        return pd.DataFrame({"start": [2.0, 0.0], "end": [3.0, 2.0], "speaker": ["SPEAKER_00", "SPEAKER_01"]})


def test_turns_are_named_in_the_order_of_speaking(tmp_path):
    pipeline = Pipeline()
    path = save_wav(tmp_path / "a.wav", np.zeros(48_000), 16_000)
    made = PyannoteDiariser(DiariseConfig(model="x", min_speakers=1, max_speakers=3), "cpu", pipeline)
    found = diarise(made, {"id": "a", "path": str(path)})
    assert found == {"id": "a", "fault": None, "turns": [[0.0, 2.0, "S0"], [2.0, 3.0, "S1"]]}
    assert pipeline.asked == {"min_speakers": 1, "max_speakers": 3}
    assert diarise(made, {"id": "b", "path": str(tmp_path / "none.wav")})["fault"][0] == "diarisation_failed"


def test_a_word_is_of_whoever_speaks_longest_during_it():
    turns = [[0.0, 2.0, "S0"], [2.0, 3.0, "S1"], [2.5, 2.6, "S0"]]
    times = [(0.0, 1.0), (1.2, 2.3), (1.8, 2.4), (2.4, 2.9), (5.0, 6.0)]
    words = [Spoken("w", a, b, 1.0, None) for a, b in times]
    assert speakers_of(words, turns) == ["S0", "S0", "S1", "S1", "S1"]
    assert speakers_of(words, []) == ["S0"] * 5


def test_a_pipeline_that_is_not_there_says_so(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("pipeline: {name: no.such.Pipeline}\n")
    with pytest.raises(DiariserError, match=r"did not load.*null"):
        PyannoteDiariser(DiariseConfig(model=str(config)), "cpu")
