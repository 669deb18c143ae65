"""The recogniser that chooses among candidates: word errors as the evaluation counts them."""

from __future__ import annotations

import numpy as np
import pytest

from vall_e.evaluation.judge import WordJudge


class Listener:
    """Hears what was planted, and notes what it was told to expect."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.prompts = texts, []

    def transcribe(self, clips, prompt=None, vad=False):
        assert all(rate == 16_000 for _, rate in clips)
        self.prompts.append(prompt)
        return list(self.texts)


def test_errors_are_shares_of_the_words_that_were_wanted():
    listener = Listener("It's 2, three!", "its to three", "", "its two three its two three its two three")
    judge = WordJudge(listener, "digits")
    waves = [np.zeros(10, dtype=np.float32)] * 4
    assert judge.errors(waves, 16_000, "Its two, three.", "en-us") == pytest.approx([0, 1 / 3, 1, 1])
    assert listener.prompts == ["digits"]
    assert WordJudge(Listener("a")).errors(waves[:1], 16_000, "...", "en-us") == [0]
