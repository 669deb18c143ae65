"""Drafted and verified equals plain decoding: token by token when greedy, in distribution when drawn."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from tests.generation.oracle import GREEDY, make_prompts
from tests.tiny import CODES, LEVELS, build, model_config, sample
from vall_e.decoding import SamplingConfig, SamplingParams, SpeculationConfig
from vall_e.family import BACKBONES, Capabilities
from vall_e.generation.ar import decode
from vall_e.generation.speculative import speculate
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import draw
from vall_e.sampling.speculate import verify

LIMITS = [12, 5, 9]


def _drafting(sampling: SamplingConfig, exit_layer: int, draft: int) -> SamplingConfig:
    return sampling.model_copy(update={"speculation": SpeculationConfig(exit_layer=exit_layer, draft=draft)})


def _deep(kind: str) -> VallE:
    """Four layers of which the later ones change little: drafts are sometimes right and sometimes not."""
    model = build(kind, layers=4)
    for block in model.backbone.blocks[1:]:
        block.attention.o.weight.data *= 0.5
        block.feedforward.down.weight.data *= 0.5
    return model


@pytest.mark.parametrize("draft", [1, 2, 5, 13])
@pytest.mark.parametrize("exit_layer", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar"])
def test_greedy_equals_plain_greedy(kind: str, exit_layer: int, draft: int) -> None:
    """On a ragged batch with a prefix in one row, limits that differ, and rows that stop by themselves."""
    prompts, seeds, limits = [*make_prompts(), *make_prompts()], list(range(6)), [*LIMITS, 1, 2, 30]
    prompts[1] = replace(prompts[1], response=prompts[2].prompt[:, :2], spoken=None)
    lengths = set()
    for stopping in (0.0, 1.0 if kind == "ar-depth" else -1.0):  # never, and now and then
        model = _deep(kind)
        first = model.heads.first if kind == "ar-depth" else model.heads.heads[0]
        first.weight.data[CODES] *= stopping
        want = decode(model, prompts, GREEDY, seeds, limits)
        got = speculate(model, prompts, _drafting(GREEDY, exit_layer, draft), seeds, limits)
        for mine, plain in zip(got, want, strict=True):
            np.testing.assert_array_equal(mine[0].codes, plain[0].codes)
            assert mine[0].finished == plain[0].finished
            lengths.add((plain[0].codes.shape[1], plain[0].finished))
    assert (30, False) in lengths and any(frames > 0 and finished for frames, finished in lengths)


def test_right_drafts_save_passes_and_wrong_ones_cost_no_frame() -> None:
    """Drafted by all layers every draft is right, and a round yields draft + 1 frames; drafts that are
    always wrong yield one frame a round."""
    model, prompts = build(layers=3), make_prompts(1)
    model.heads.first.weight.data[CODES] = 0
    rounds: list[int] = []
    speculate(model, prompts, _drafting(GREEDY, 3, 3), [0], [13], lambda frames, _: rounds.append(frames))
    assert rounds == [5, 9, 13]
    rounds.clear()
    extend = model.step
    model.step = lambda codes, cache, layers=None: extend(codes, cache, layers) * (1 if layers is None else -1)
    speculate(model, prompts, _drafting(GREEDY, 1, 3), [0], [13], lambda frames, _: rounds.append(frames))
    assert rounds == list(range(2, 14))


def test_a_seed_draws_the_same_alone_and_in_a_batch() -> None:
    model, prompts = _deep("ar-depth"), make_prompts()
    sampling = _drafting(GREEDY.model_copy(update={"ar": SamplingParams(temperature=1.0, top_k=6)}), 2, 3)
    together = speculate(model, prompts, sampling, [7, 8, 9], LIMITS)
    for i, limit in enumerate(LIMITS):
        alone = speculate(model, prompts[i : i + 1], sampling, [7 + i], [limit])[0][0]
        np.testing.assert_array_equal(together[i][0].codes, alone.codes)


def _fits(observed: np.ndarray, expected: np.ndarray) -> bool:
    """Pearson's chi-square at 0.1 %, cells of fewer than five expected draws in one."""
    small = expected < 5
    observed = np.append(observed[~small], observed[small].sum())
    expected = np.append(expected[~small], max(expected[small].sum(), 1e-9))
    return bool(((observed - expected) ** 2 / expected).sum() < chi2.ppf(0.999, len(expected) - 1))


def test_a_verified_token_is_distributed_as_the_target() -> None:
    rows, vocabulary = 40_000, 5
    torch.manual_seed(0)
    for _ in range(3):
        draft, target = torch.randn(2, vocabulary) * 1.5
        target[1] = -torch.inf
        q, p = draft.expand(rows, -1), target.expand(rows, -1)
        drafted = draw(q, torch.empty(rows, vocabulary).exponential_())
        token, kept = verify(drafted, q, p, torch.empty(rows, vocabulary + 1).exponential_())
        want = target.softmax(-1).numpy() * rows
        assert _fits(np.bincount(token, minlength=vocabulary), want)
        assert not _fits(np.bincount(drafted, minlength=vocabulary), want)
        overlap = torch.minimum(draft.softmax(-1), target.softmax(-1)).sum()  # 2211.17192, corollary 3.6
        assert kept.float().mean() == pytest.approx(float(overlap), abs=0.01)
        assert torch.equal(token[kept], drafted[kept])


def test_drawn_frames_are_distributed_as_the_whole_models() -> None:
    """Two frames of two levels and three codes: the chance of each of the outcomes, from the model by enumeration."""
    rows, codes, levels, frames = 6000, 3, 2, 2
    torch.manual_seed(3)
    model = VallE(model_config(layers=3, alignment=False), levels, codes, 9).eval()
    rng = np.random.default_rng(0)
    prompt = Sample(rng.integers(3, 9, 4), rng.integers(codes, size=(levels, 3)), np.zeros((levels, 0), dtype=np.int64))
    sampling = SamplingConfig(ar={"temperature": 1.3}, guidance=0.0, candidates=1)
    chances = dict(_outcomes(model, prompt, 1.3, frames))
    assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
    got = speculate(model, [prompt] * rows, _drafting(sampling, 1, 2), list(range(rows)), [frames] * rows)
    counts = dict.fromkeys(chances, 0)
    for (candidate,) in got:
        counts[tuple(map(tuple, candidate.codes.T.tolist())), candidate.finished] += 1
    names = list(chances)
    want = np.array([chances[name] * rows for name in names])
    assert _fits(np.array([counts[name] for name in names]), want)


@torch.no_grad()
def _outcomes(model: VallE, prompt: Sample, temperature: float, frames: int):
    """All (frames, finished) with their chances; ``prompt`` holds the frames so far."""
    levels, codes = model.layout.levels, model.layout.codes
    so_far = tuple(map(tuple, prompt.response.T.tolist()))
    if len(so_far) == frames:
        yield (so_far, False), 1.0
        return
    hidden = model.hidden(pack([prompt], model.layout))[0, -1:]
    first = (model.heads(hidden, 0, []) / temperature).softmax(-1)[0]
    yield (so_far, True), float(first[codes])
    for frame in product(range(codes), repeat=levels):
        drawn = [torch.tensor([code]) for code in frame]
        chance = float(first[frame[0]])
        for level in range(1, levels):
            chance *= float((model.heads(hidden, level, drawn[:level]) / temperature).softmax(-1)[0, frame[level]])
        longer = replace(prompt, response=np.concatenate((prompt.response, np.array(frame)[:, None]), axis=1))
        for outcome, rest in _outcomes(model, longer, temperature, frames):
            yield outcome, chance * rest


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in ({"guidance": 1.0}, {"candidates": 2}, {"ar": {"repetition_penalty": 1.2}}):
        with pytest.raises(ValueError, match="draws one candidate from the plain model"):
            SamplingConfig(**(GREEDY.model_dump() | changes | {"speculation": {"exit_layer": 1}}))
    model, prompts = build(), [sample(np.random.default_rng(0), response=0)]
    with pytest.raises(ValueError, match="only 2 layers"):
        speculate(model, prompts, _drafting(GREEDY, 3, 2), [0], [4])
    monkeypatch.setitem(BACKBONES, "llama", Capabilities(rewind=False))
    with pytest.raises(ValueError, match="llama cannot draft and take back"):
        speculate(model, prompts, _drafting(GREEDY, 1, 2), [0], [4])
    assert model.layout.levels == LEVELS
