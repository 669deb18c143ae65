"""Speculative decoding says exactly what plain decoding says, whatever drafts, and drafts only as long as that pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.generation.oracle import GREEDY, make_prompts
from tests.tiny import CODES, build, model_config, sample
from vall_e.decoding import SamplingConfig, SpeculationConfig
from vall_e.family import BACKBONES, Capabilities
from vall_e.generation import speculative
from vall_e.generation.ar import decode
from vall_e.generation.engine import Engine
from vall_e.generation.speculative import Pace
from vall_e.models.vall_e import VallE

LIMITS = [12, 5, 9]
DRAWN = GREEDY.model_copy(update={"ar": GREEDY.ar.model_copy(update={"temperature": 1.0, "top_k": 6})})

WATCHFUL = {"temperature": 1.0, "entropix": True, "entropix_entropy": 1.5, "entropix_varentropy": 0.05}
UNSURE = GREEDY.model_copy(update={"ar": GREEDY.ar.model_copy(update=WATCHFUL)})


def _drafting(sampling: SamplingConfig, exit_layer: int, draft: int) -> SamplingConfig:
    return sampling.model_copy(update={"speculation": SpeculationConfig(exit_layer=exit_layer, draft=draft)})


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many drafts as are allowed, in each step."""
    monkeypatch.setattr(Pace, "drafts", lambda pace: pace.choices[-1])


def _deep(kind: str, stopping: float = 1.0) -> VallE:
    """Four layers of which the later ones change little: drafts are sometimes right and sometimes not. ``stopping``
    scales the logit of stop."""
    model = build(kind, layers=4)
    for block in model.backbone.blocks[1:]:
        block.attention.o.weight.data *= 0.5
        block.feedforward.down.weight.data *= 0.5
    first = model.heads.first if kind == "ar-depth" else model.heads.heads[0]
    first.weight.data[CODES] *= stopping
    return model


def _equal(mine: list, plain: list) -> set[tuple[int, bool]]:
    """Asserts that candidates are the same; returns lengths and whether they ended by themselves."""
    for (a,), (b,) in zip(mine, plain, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        assert a.finished == b.finished
    return {(c.codes.shape[1], c.finished) for (c,) in plain}


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, UNSURE], ids=["greedy", "drawn", "entropix"])
@pytest.mark.parametrize("draft", [1, 3, 13])
@pytest.mark.parametrize("exit_layer", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar", "v2-ar"])
def test_equals_plain_decoding(eager: None, kind: str, exit_layer: int, draft: int, sampling: SamplingConfig) -> None:
    """On a ragged batch with a prefix in one row, limits that differ, and rows that stop by themselves."""
    prompts, seeds, limits = [*make_prompts(), *make_prompts()], list(range(6)), [*LIMITS, 1, 2, 30]
    prompts[1] = replace(prompts[1], response=prompts[2].prompt[:, :2], spoken=None)
    lengths = set()
    for stopping in (0.0, 1.0 if kind == "ar-depth" else -1.0):  # never or seldom, and now and then
        model = _deep(kind, stopping)
        got = decode(model, prompts, _drafting(sampling, exit_layer, draft), seeds, limits)
        lengths |= _equal(got, decode(model, prompts, sampling, seeds, limits))
    assert len(lengths) > 3


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("plain_first", [0, 1, 2])
def test_another_model_may_draft(monkeypatch: pytest.MonkeyPatch, sampling: SamplingConfig, plain_first: int) -> None:
    """One that is always right, and one that never heard of the voice; also after steps that it did not see."""
    model, prompts = _deep("ar-depth"), make_prompts()
    other = VallE(
        model_config("ar-depth", dim=16, layers=1, heads=2),
        *(getattr(model.layout, n) for n in ("levels", "codes", "phones")),
    )
    plain = decode(model, prompts, sampling, [4, 5, 6], LIMITS)
    for draft in (model, other.eval()):
        turns = iter(([0] * plain_first + [3]) * 20)
        monkeypatch.setattr(Pace, "drafts", lambda _, turns=turns: next(turns))
        _equal(decode(model, prompts, _drafting(sampling, 1, 3), [4, 5, 6], LIMITS, draft=draft), plain)


def test_right_drafts_save_passes_and_wrong_ones_cost_no_frame(eager: None) -> None:
    """Drafted by all layers every draft is right, and a round yields draft + 1 frames; drafts that are always wrong
    yield one frame a round."""
    model, prompts = build(layers=3), make_prompts(1)
    model.heads.first.weight.data[CODES] = 0
    rounds: list[int] = []
    decode(model, prompts, _drafting(GREEDY, 3, 3), [0], [14], lambda frames, _: rounds.append(frames))
    assert rounds == [5, 9, 13]
    rounds.clear()
    step = model.step
    model.step = lambda codes, cache, layers=None: step(codes, cache, layers) * (1 if layers is None else -1)
    decode(model, prompts, _drafting(GREEDY, 1, 3), [0], [14], lambda frames, _: rounds.append(frames))
    assert rounds == list(range(2, 14))


def test_rows_join_between_drafts(eager: None) -> None:
    model, prompts = _deep("ar-depth"), make_prompts()
    for draft in (None, build(seed=5)):
        engine = Engine(model, _drafting(DRAWN, 2, 3), draft=draft)
        engine.add(prompts[2:], [1], [2])
        while engine.step():
            pass
        (first,) = engine.add(prompts[:1], [7], [12])
        engine.step()
        (second,) = engine.add(prompts[1:2], [8], [9])
        while engine.step():
            pass
        found = [first.candidates(), second.candidates()]
        _equal(found, decode(model, prompts[:2], DRAWN, [7, 8], [12, 9]))


@pytest.mark.parametrize("accepted, least, most", [(0.0, 0, 0), (0.3, 0, 1), (0.8, 2, 6), (1.0, 8, 8)])
def test_the_pace_follows_what_pays(accepted: float, least: int, most: int) -> None:
    """Passes over a quarter of the layers, where checking a frame more costs a twentieth of a step."""
    pace, rng = Pace(8), np.random.default_rng(0)
    seconds, frames, chosen = 0.0, 0, []
    for _ in range(600):
        drafts = pace.drafts()
        if drafts == 0:
            pace.plain(1.0)
            seconds, frames = seconds + 1.0, frames + 1
        else:
            right = int(np.cumprod(rng.random(drafts) < accepted).sum())
            pace.speculative(drafts, right, int(right < drafts), 0.25 * drafts, 1 + 0.05 * drafts)
            seconds, frames = seconds + 1 + 0.3 * drafts, frames + right + 1
        chosen.append(drafts)
    assert least <= np.median(chosen[100:]) <= most
    assert frames / seconds > 0.97  # never worth less than plain decoding
    assert max(chosen) > 0 and (accepted < 0.8 or frames / seconds > 1.3)


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in ({"guidance": 1.0}, {"candidates": 2}, {"ar": {"repetition_penalty": 1.2}}):
        with pytest.raises(ValueError, match="draws one candidate from the plain model"):
            SamplingConfig(**(GREEDY.model_dump() | changes | {"speculation": {"exit_layer": 1}}))
    model, prompts = build(), [sample(np.random.default_rng(0), response=0)]
    with pytest.raises(ValueError, match="only 2 layers"):
        decode(model, prompts, _drafting(GREEDY, 3, 2), [0], [4])
    stranger = VallE(model_config(), 3, CODES + 1, 9).eval()
    with pytest.raises(ValueError, match="codes, levels and phones"):
        decode(model, prompts, _drafting(GREEDY, 1, 2), [0], [4], draft=stranger)
    monkeypatch.setitem(BACKBONES, "llama", Capabilities(rewind=False))
    with pytest.raises(ValueError, match="llama cannot draft and take back"):
        decode(model, prompts, _drafting(GREEDY, 1, 2), [0], [4])
    assert speculative.PROBE_EVERY > 10
