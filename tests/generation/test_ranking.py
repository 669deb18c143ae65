"""Ranking: the voice's own reading or a recogniser finds the right one among planted candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.tiny import build, of_task, overfit
from vall_e.generation.ar import Candidate
from vall_e.generation.ranking import Ranker, RankError, stt_losses
from vall_e.models.packing import pack

SAID = 5


@pytest.fixture(scope="module")
def reader():
    """A model that has learned to read a few utterances, and those as samples of ``tts``."""
    model = build(tasks=("tts", "stt"), alignment=False)
    rows = [of_task("stt", seed, text=3, response=SAID + seed) for seed in range(3)]
    overfit(model, rows, steps=150)
    spoken = [replace(r, task="tts", text=r.symbols, symbols=r.symbols[:0], response=r.more["source"]) for r in rows]
    return model.eval(), [replace(s, more={}) for s in spoken]


def candidates(samples, scores=(0.0, 0.0, 0.0)):
    return [Candidate(s.response, True, score) for s, score in zip(samples, scores, strict=True)]


def whole(index: int, found) -> list[np.ndarray]:
    """Codes of candidates whose first pass makes all levels."""
    return [candidate.codes for candidate in found]


def choose(ranker: Ranker, options, samples) -> list[int]:
    """What is chosen for each sample, whose candidates are the responses of all."""
    empty = samples[0].response[:, :0]
    prompts = [replace(sample, response=empty) for sample in samples]
    ranker = ranker(prompts)
    return [next(i for i, o in enumerate(options) if o is ranker(options, prompt)) for prompt in prompts]


def test_the_voices_own_reading_picks_the_right_one_among_wrong_ones(reader):
    model, samples = reader
    options = candidates(samples, (9.0, 1.0, 2.0))  # own scores would always take the first

    def ranker(by):
        return lambda prompts: Ranker(model, by, prompts, lambda *_: 0, whole, None)

    assert choose(ranker("stt"), options, samples) == [0, 1, 2]
    assert choose(ranker("alignment"), options, samples) == [0, 0, 0]
    assert choose(ranker("auto"), options, samples) == [0, 0, 0]


def test_the_reading_loss_is_the_cross_entropy_of_the_text_and_its_end(reader):
    model, samples = reader
    together = stt_losses(model, samples)
    for sample, loss in zip(samples, together, strict=True):
        row = replace(sample, task="stt", more={"source": sample.response}, symbols=sample.text, text=sample.text[:0],
                      prompt=sample.prompt[:, :0], response=sample.response[:, :0])  # fmt: skip
        packed = pack([row], model.layout)
        with torch.inference_mode():
            logits = model.symbol_heads["phones"](model.hidden(packed))[0]
        wanted = F.cross_entropy(logits, packed.written[0])
        assert loss == pytest.approx(float(wanted), abs=1e-4)
    assert max(together) < 0.3


def test_a_recogniser_decides_and_own_scores_only_among_equals(reader):
    model, samples = reader
    options = candidates(samples, (9.0, 1.0, 2.0))
    heard: list[int] = []

    def errors(index, codes):
        heard.append(len(codes))
        return [0.5, 0.0, 0.0]

    chosen = choose(lambda p: Ranker(model, "recogniser", p, lambda *_: 0, whole, errors), options, samples[:1])
    assert chosen == [2] and set(heard) == {3}


def test_a_fault_outweighs_any_score_and_stt_needs_the_task(reader):
    _, samples = reader
    options = [
        Candidate(np.zeros((3, 4), dtype=np.int64), finished, score) for finished, score in ((False, 4.0), (True, 0.0))
    ]
    model = build(alignment=False)
    faults = lambda index, candidate: int(not candidate.finished)  # noqa: E731
    assert choose(lambda p: Ranker(model, "auto", p, faults, whole, None), options, samples[:1]) == [1]
    with pytest.raises(RankError, match="trained with the task stt"):
        choose(lambda p: Ranker(model, "stt", p, faults, whole, None), options, samples[:1])
