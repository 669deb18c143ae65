"""The loop: rows join and leave, fused and rounded weights say the same, nothing depends on the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.generation.oracle import GREEDY, make_prompts
from tests.tiny import CODES, build, of_task
from vall_e.decoding import SamplingConfig, SamplingParams
from vall_e.generation.ar import decode
from vall_e.generation.engine import Engine
from vall_e.models.formats import use_weights, weight_bytes
from vall_e.models.vall_e import VallE
from vall_e.sampling.chain import Chain

DRAWN = SamplingConfig(ar=SamplingParams(temperature=1.0, repetition_penalty=1.3), guidance=0.5, candidates=2)


def _same(one: Sequence, other: Sequence) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        assert a.finished == b.finished
        assert a.score == pytest.approx(b.score, abs=1e-4)


@pytest.mark.parametrize("backbone", ["llama", "retnet", "yoco", "mamba"])
@pytest.mark.parametrize("kind", ["ar-depth", "v2-ar"])
def test_rows_that_join_later_say_what_they_say_alone(kind: str, backbone: str) -> None:
    model, prompts = build(kind, backbone=backbone, kv_heads=4 if backbone == "retnet" else 2), make_prompts()
    engine = Engine(model, DRAWN)
    tickets = engine.add(prompts[:1], [3], [9])
    for _ in range(4):
        engine.step()
    tickets += engine.add(prompts[1:], [4, 5], [14, 2])
    while engine.step():
        pass
    for i, (ticket, limit) in enumerate(zip(tickets, (9, 14, 2), strict=True)):
        assert ticket.done
        _same(ticket.candidates(), decode(model, prompts[i : i + 1], DRAWN, [3 + i], [limit])[0])


UNSURE = {"temperature": 0.8, "entropix": True, "entropix_entropy": 1.5, "entropix_varentropy": 0.05}


@pytest.mark.parametrize("guidance", [0.0, 0.7])
@pytest.mark.parametrize("backbone", ["llama", "yoco", "retnet"])
def test_entropix_is_told_what_the_last_layer_attends_to(
    monkeypatch: pytest.MonkeyPatch, backbone: str, guidance: float
) -> None:
    model, prompts = build("ar-depth", backbone=backbone, kv_heads=4 if backbone == "retnet" else 2), make_prompts()
    sampling = SamplingConfig(ar=SamplingParams(**UNSURE), guidance=guidance, candidates=1)
    told, draw = [], Chain.draw

    def spy(chain: Chain, logits: torch.Tensor, noise: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        told.append(seen)
        return draw(chain, logits, noise, seen)

    monkeypatch.setattr(Chain, "draw", spy)
    together = decode(model, prompts, sampling, [3, 4, 5], [6, 6, 6])
    first = told[:: model.layout.shown]  # of level 0
    assert first[0] is None  # a prompt's own
    if backbone == "retnet":
        assert all(seen is None for seen in first)
    else:
        assert all(seen.shape[:2] == (len(seen), 4) for seen in first[1:])
        assert all(torch.allclose(seen.sum(-1), torch.ones(())) for seen in first[1:])
    for i, rows in enumerate(together):
        _same(rows, decode(model, prompts[i : i + 1], sampling, [3 + i], [6])[0])


def test_an_empty_engine_takes_rows_again_and_what_does_not_fit_is_refused() -> None:
    model, prompts = build(), make_prompts()
    engine = Engine(model, DRAWN)
    assert engine.step() == 0
    for _ in range(2):
        (ticket,) = engine.add(prompts[1:2], [4], [5])
        while engine.step():
            pass
        _same(ticket.candidates(), decode(model, prompts[1:2], DRAWN, [4], [5])[0])
    with pytest.raises(ValueError, match="write in one vocabulary"):
        Engine(model, DRAWN, "digits").add(prompts, [0] * 3, [1] * 3)
    model.heads.first.weight.data[CODES] = 0
    engine.add(prompts[1:2], [0], [50])
    with pytest.raises(ValueError, match="take an engine for each"):
        engine.add([prompts[1].without_text()], [0], [4])


def test_only_live_rows_are_computed() -> None:
    model, prompts = build(), make_prompts(1) * 6
    model.heads.first.weight.data[CODES] = 0
    rows: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    decode(model, prompts, GREEDY, [0] * 6, [2, 4, 6, 8, 2, 5])
    assert rows == [6, 6, 4, 4, 3, 2, 1, 1]  # the prefill, and a forward a step


@pytest.mark.parametrize("backbone", ["llama", "mixtral", "transformer", "yoco"])
@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar"])
def test_fused_layers_say_the_same(kind: str, backbone: str) -> None:
    changes = {"backbone": backbone} | ({"bidirectional": "flip"} if backbone == "yoco" and kind == "ar+nar" else {})
    model, fused = (build(kind, positions="sequence", **changes) for _ in range(2))
    use_weights(fused)
    prompts = make_prompts()
    want, got = (decode(m, prompts, DRAWN, [1, 2, 3], [9, 12, 5]) for m in (model, fused))
    for one, other in zip(want, got, strict=True):
        _same(one, other)


@pytest.mark.parametrize("scaling", ["linear", "dynamic"])
def test_fused_rotary_positions_stretch_alike(scaling: str) -> None:
    rope = {"scaling": scaling, "factor": 2.0, "trained_length": 8}
    model, fused = (build(rope=rope) for _ in range(2))
    _same(*(decode(m, make_prompts(1), GREEDY, [0], [20])[0] for m in (model, use_weights(fused))))


@pytest.mark.parametrize("weights", ["bfloat16", "float16", "int8"])
def test_other_formats_are_smaller_and_say_nearly_the_same(weights: str) -> None:
    def made() -> VallE:
        return build(dim=64, ff_dim=96)

    model, small = made(), use_weights(made(), weights)
    assert weight_bytes(small) < 0.8 * weight_bytes(model)
    prompts = make_prompts()
    for (a,), (b,) in zip(*(decode(m, prompts, GREEDY, [0] * 3, [3] * 3) for m in (model, small)), strict=True):
        assert a.codes.shape == b.codes.shape
        assert np.mean(a.codes == b.codes) > 0.5
    cache = small.backbone.new_cache(1, 4, small.dtype, torch.device("cpu"))
    assert cache.tensors["keys"][0].dtype == (torch.float32 if weights == "int8" else getattr(torch, weights))
    with pytest.raises(ValueError, match="no weight format 'int3'"):
        use_weights(model, "int3")


def test_a_row_of_8_bits_says_the_same_in_a_batch() -> None:
    model, prompts = use_weights(build(dim=64, ff_dim=96), "int8"), make_prompts()
    together = decode(model, prompts, DRAWN, [1, 2, 3], [8, 8, 8])
    for i in range(3):
        _same(together[i], decode(model, prompts[i : i + 1], DRAWN, [1 + i], [8])[0])


def test_written_symbols_leave_and_join_too() -> None:
    model = build("ar+nar", tasks=("tts", "stt"))
    prompts = [of_task("stt", seed, response=4 + seed) for seed in range(3)]
    prompts = [type(p)(**(vars(p) | {"symbols": p.symbols[:0]})) for p in prompts]
    engine = Engine(model, GREEDY, "phones")
    tickets = engine.add(prompts[:1], [0], [6])
    engine.step()
    tickets += engine.add(prompts[1:], [0, 0], [4, 6])
    while engine.step():
        pass
    for prompt, ticket, limit in zip(prompts, tickets, (6, 4, 6), strict=True):
        _same(ticket.candidates(), decode(model, [prompt], GREEDY, [0], [limit])[0])


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_the_repetition_penalty_is_ctrls_on_logits_less_their_mean(
    monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    """What is drawn does not depend on where the zero of the logits is, guided or not."""
    model, prompts = build("ar-depth"), make_prompts()
    sampling = SamplingConfig(ar={"temperature": 0.0, "repetition_penalty": 1.3}, guidance=guidance, candidates=1)
    told, draw, first = [], Chain.draw, type(model).first

    def spy(chain: Chain, logits: torch.Tensor, noise: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        token = draw(chain, logits, noise, seen)
        told.append((logits.clone(), chain.history.clone(), token))
        return token

    monkeypatch.setattr(Chain, "draw", spy)
    plain = decode(model, prompts, sampling, [3, 4, 5], [9, 9, 9])
    punished = 0
    for logits, history, token in told[:: model.layout.shown]:
        torch.testing.assert_close(logits.mean(-1), torch.zeros(len(logits)), atol=1e-4, rtol=0)
        for row, past in enumerate(history):
            seen = torch.zeros(logits.shape[1], dtype=torch.bool)
            seen[past[past >= 0]] = True
            less = torch.where(logits[row] > 0, logits[row] / 1.3, logits[row] * 1.3)
            want = torch.where(seen, less, logits[row]).argmax()
            assert token[row] == want
            punished += int(want != logits[row].argmax())
    assert punished

    def shifted(self: VallE, *args: object) -> tuple:
        states, logits = first(self, *args)
        return states, logits + 20.0

    monkeypatch.setattr(type(model), "first", shifted)
    for a, b in zip(plain, decode(model, prompts, sampling, [3, 4, 5], [9, 9, 9]), strict=True):
        np.testing.assert_array_equal(a[0].codes, b[0].codes)


def _sure(monkeypatch: pytest.MonkeyPatch, code: int) -> VallE:
    """A model that always says ``code`` at p > 0.99, next to it another one."""
    model, logits = build("ar-depth"), torch.full((CODES + 1,), -2.0)
    logits[code], logits[code + 1] = 11.0, 6.0
    assert logits.softmax(0)[code] > 0.99
    first = type(model).first
    monkeypatch.setattr(type(model), "first", lambda *args: (first(*args)[0], logits.expand(len(args[1]), -1)))
    return model


def test_a_certain_code_that_repeats_itself_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likeliest is another one then, and of forty draws about half are."""
    model, prompts = _sure(monkeypatch, 4), make_prompts(1)

    def second(penalty: float, temperature: float, rows: int) -> list[int]:
        ar = {"temperature": temperature, "repetition_penalty": penalty}
        sampling = SamplingConfig(ar=ar, guidance=0.0, candidates=1)
        found = decode(model, prompts * rows, sampling, range(rows), [2] * rows)
        return [row.codes[0, 1] for (row,) in found if row.codes[0, 0] == 4]

    assert second(1.0, 0.0, 1) == [4] and second(2.0, 0.0, 1) == [5]
    assert second(1.0, 1.0, 40).count(4) >= 38 and second(2.0, 1.0, 40).count(4) < 28


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 3.0}, {"dry_multiplier": 5.0, "dry_allowed": 1}])
def test_penalties_count_what_a_response_goes_on_from(penalty: dict) -> None:
    """Cut in two, a response is what it was, and its window is no longer."""
    model, prompts = build("ar-depth", seed=3), make_prompts(2)
    model.heads.first.weight.data[CODES] = 0
    ar = {"temperature": 0.0, "banned": [CODES], "repetition_window": 6} | penalty
    sampling = SamplingConfig(ar=ar, guidance=0.0, candidates=2)
    whole = [rows[0].codes for rows in decode(model, prompts, sampling, [1, 2], [14, 14])]
    begun = [replace(p, response=codes[:, :8], spoken=None) for p, codes in zip(prompts, whole, strict=True)]
    engine = Engine(model, sampling)
    engine.add(begun, [1, 2], [6, 6])
    history = engine.state.chains[0].history
    assert history.shape == (4, 6)
    for row, codes in zip(history, [whole[0], whole[0], whole[1], whole[1]], strict=True):
        assert row[:5].tolist() == codes[0, 3:8].tolist()
    for rows, codes in zip(decode(model, begun, sampling, [1, 2], [6, 6]), whole, strict=True):
        np.testing.assert_array_equal(rows[0].codes, codes[:, 8:])
