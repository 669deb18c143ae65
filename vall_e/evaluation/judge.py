"""A recogniser that listens to candidates while they can still be chosen (``sampling.rank: recogniser``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vall_e.evaluation.error_rates import word_errors
from vall_e.text.normalize import words_for_scoring

if TYPE_CHECKING:
    from vall_e.evaluation.run import Listener


class WordJudge:
    """Word error rates by a recogniser; a ``generation.ranking.Judge``.

    Args:
        listener: an ``asr.Recogniser``.
        prompt: words that it should expect.
    """

    def __init__(self, listener: Listener, prompt: str | None = None) -> None:
        self.listener, self.prompt = listener, prompt

    @classmethod
    def bundled(cls, prompt: str | None = None) -> WordJudge:
        """With the recogniser that comes with the package."""
        from vall_e.evaluation.asr import Recogniser
        from vall_e.preparation import RecogniserConfig

        return cls(Recogniser(RecogniserConfig()), prompt)

    def errors(self, waves: Sequence[np.ndarray], rate: int, text: str, language: str) -> list[float]:
        """Share of the words of ``text`` that are wrong in each wave float32 [N]; 0 where it has no words."""
        wanted = words_for_scoring(text, language)
        found = []
        for heard in self.listener.transcribe([(wave, rate) for wave in waves], self.prompt):
            wrong = word_errors(wanted, words_for_scoring(heard, language))
            found.append(wrong.errors / max(1, wrong.count))
        return found
