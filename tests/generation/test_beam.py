"""Beam search: width 1 is greedy, nothing ranks below greedy, wide enough is exhaustive, rows depend on no batch."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.generation.oracle import GREEDY, make_prompts
from tests.tiny import CODES, LEVELS, build, of_task
from vall_e.decoding import BeamConfig, SamplingConfig
from vall_e.generation.ar import decode
from vall_e.generation.beam import beam_search
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.tasks import TASKS


def searching(width: int, length_penalty: float = 1.0, **changes: object) -> SamplingConfig:
    return GREEDY.model_copy(update={"beam": BeamConfig(width=width, length_penalty=length_penalty)} | changes)


def eager(kind: str = "ar-depth", seed: int = 0, sharper: float = 1.0) -> VallE:
    """A model whose stop is about as likely as anything else; ``sharper`` makes all logits as much greater."""
    model = build(kind, seed)
    head = model.heads.first if kind == "ar-depth" else model.heads.heads[0]
    with torch.no_grad():
        head.weight.mul_(sharper)
    return model


def score(model: VallE, prompt: Sample, codes: np.ndarray, stops: bool, power: float, penalty: float = 1.0) -> float:
    """Of an output int64 [l, T] on level 0, in one forward without a cache; ``penalty`` is on what it repeats."""
    new = np.zeros((LEVELS, codes.shape[1]), dtype=np.int64)
    new[: len(codes)] = codes
    packed = pack([replace(prompt, response=new, spoken=None)], model.layout)
    with torch.no_grad():
        states = model.heads.prepare(model.hidden(packed)[0, int(packed.response[0]) :])
        logits = model.heads(states, 0, []).double()
    said = [*codes[0].tolist(), *([CODES] if stops else [])]
    logits = logits[: len(said)] - logits[: len(said)].mean(-1, keepdim=True)
    for at in range(len(said)):
        for code in set(said[:at]):
            logits[at, code] *= 1 / penalty if logits[at, code] > 0 else penalty
    log_p = logits.log_softmax(-1)
    return float(sum(log_p[at, code] for at, code in enumerate(said))) / len(said) ** power


@pytest.mark.parametrize("kind", ["ar-depth", "ar", "v2-ar"])
@pytest.mark.parametrize("strength", [0.0, 1.5])
@pytest.mark.parametrize("penalty", [1.0, 3.0])
def test_width_one_is_greedy_code_for_code(kind: str, strength: float, penalty: float) -> None:
    model, prompts = build(kind, seed=3), make_prompts()
    prompts[1] = replace(prompts[1], response=prompts[2].prompt[:, :4], spoken=None)
    ar = GREEDY.ar.model_copy(update={"repetition_penalty": penalty})
    found = beam_search(model, prompts, searching(1, guidance=strength, ar=ar), [9, 12, 5])
    greedy = decode(model, prompts, GREEDY.model_copy(update={"guidance": strength, "ar": ar}), [0] * 3, [9, 12, 5])
    for mine, other in zip(found, greedy, strict=True):
        np.testing.assert_array_equal(mine[0].codes, other[0].codes)
        assert mine[0].finished == other[0].finished


@pytest.mark.parametrize("task", ["stt", "phn", "un-phn", "len"])
def test_width_one_writes_as_greedy_does(task: str) -> None:
    model = build("ar+nar", tasks=("tts", task))
    prompts = [of_task(task, seed, response=4 + seed) for seed in range(3)]
    prompts = [replace(prompt, symbols=prompt.symbols[:0]) for prompt in prompts]
    found, greedy = beam_search(model, prompts, searching(1), [7] * 3), decode(model, prompts, GREEDY, [0] * 3, [7] * 3)
    assert TASKS[task].output == prompts[0].vocabulary
    for mine, other in zip(found, greedy, strict=True):
        np.testing.assert_array_equal(mine[0].codes, other[0].codes)


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0])
def test_no_result_ranks_below_greedy_and_scores_are_of_what_is_returned(power: float) -> None:
    better = 0
    for seed in range(4):
        model, prompts = eager(seed=seed, sharper=2.0), make_prompts()
        wide = beam_search(model, prompts, searching(3, power), [8] * 3)
        for (found,), (greedy,), prompt in zip(
            wide, decode(model, prompts, GREEDY, [0] * 3, [8] * 3), prompts, strict=True
        ):
            reached = score(model, prompt, greedy.codes, greedy.finished, power)
            assert found.score == pytest.approx(score(model, prompt, found.codes, found.finished, power), abs=1e-4)
            assert (found.finished, found.score) >= (greedy.finished, reached - 1e-4)
            better += found.score > reached + 1e-3
    assert better > 0


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_beam_as_wide_as_all_there_is_finds_the_best_of_all(power: float) -> None:
    lengths = []
    for seed in range(2):
        model, prompt = eager("ar", seed), make_prompts()[1]
        outputs = [list(o) for length in range(3) for o in itertools.product(range(CODES), repeat=length)]
        best = max((score(model, prompt, np.array([o], dtype=np.int64), True, power), o) for o in outputs)
        found = beam_search(model, [prompt], searching(CODES**3, power), [3])[0][0]
        assert found.finished and found.score == pytest.approx(best[0], abs=1e-5)
        assert found.codes[0].tolist() == best[1]
        lengths.append(len(best[1]))
    assert power == 0 or max(lengths) > 0  # not all stop at once


def test_a_row_finds_the_same_alone_and_in_a_ragged_batch() -> None:
    model, prompts = eager(seed=5, sharper=2.0), make_prompts()
    prompts[1] = replace(prompts[1], response=prompts[2].prompt[:, :2], spoken=None)
    sampling = searching(4, guidance=0.7)
    together = beam_search(model, prompts, sampling, [9, 4, 12])
    for prompt, limit, (found,) in zip(prompts, [9, 4, 12], together, strict=True):
        alone = beam_search(model, [prompt], sampling, [limit])[0][0]
        np.testing.assert_array_equal(found.codes, alone.codes)
        assert found.score == pytest.approx(alone.score, abs=1e-5) and found.codes.shape[1] <= limit


def test_hypotheses_have_histories_of_their_own() -> None:
    """Scores count what each of them repeats itself, whatever the others have said."""
    model, prompts = eager(seed=1, sharper=2.0), make_prompts()
    with torch.no_grad():
        model.heads.first.weight[CODES] = -3 * model.heads.first.weight[:CODES].mean(0)
    ar, repeated = GREEDY.ar.model_copy(update={"repetition_penalty": 1.5}), 0
    for (found,), prompt in zip(beam_search(model, prompts, searching(4, ar=ar), [8] * 3), prompts, strict=True):
        assert found.score == pytest.approx(score(model, prompt, found.codes, found.finished, 1.0, 1.5), abs=1e-4)
        repeated += len(set(found.codes[0].tolist())) < found.codes.shape[1]
    assert repeated


def test_what_cannot_be_searched_is_refused() -> None:
    model, prompts = build("ar", causal_size=2), make_prompts()
    with pytest.raises(ValueError, match="sampling.beam"):
        beam_search(model, prompts, GREEDY, [3] * 3)
    with pytest.raises(ValueError, match="causal_size is 2"):
        beam_search(model, prompts, searching(2), [3] * 3)
    with pytest.raises(ValueError, match="one vocabulary"):
        beam_search(model, [of_task("tts"), of_task("stt")], searching(2), [3, 3])


@pytest.mark.parametrize("width", [1, 4])
def test_none_stops_before_it_may(width: int) -> None:
    model, prompts = eager(sharper=2.0), make_prompts()
    with torch.no_grad():
        model.heads.first.weight[CODES] *= 3
    free = beam_search(model, prompts, searching(width), [9] * 3)
    assert any(found.codes.shape[1] < 3 for (found,) in free)
    for found, least in zip(
        beam_search(model, prompts, searching(width), [9] * 3, None, [3, 0, 6]), (3, 0, 6), strict=True
    ):
        assert found[0].codes.shape[1] >= least and found[0].codes.max(initial=0) < CODES
        assert np.isfinite(found[0].score)
