"""Decoding: cached equals uncached, rows do not depend on their batch, limits, candidates, levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.generation.oracle import GREEDY, make_prompts, uncached
from tests.tiny import CODES, LEVELS, build, of_task
from vall_e.decoding import SamplingConfig, SamplingParams
from vall_e.generation.ar import decode
from vall_e.generation.nar import fill_levels
from vall_e.models.packing import pack
from vall_e.tasks import TASKS

KINDS = ("ar-depth", "ar+nar", "v2-ar")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 1.5])
@pytest.mark.parametrize("positions", ["segment", "sequence"])
def test_cached_ragged_batch_equals_uncached_single_rows(kind: str, strength: float, positions: str) -> None:
    model, prompts = build(kind, positions=positions, languages=("de",)), make_prompts()
    prompts[0] = replace(prompts[0], language=1)
    prompts[1] = replace(prompts[1], response=prompts[2].prompt[:, :2], spoken=None)  # one row goes on from a prefix
    got = decode(model, prompts, GREEDY.model_copy(update={"guidance": strength}), [0, 1, 2], [12, 12, 12])
    with torch.no_grad():
        for candidates, prompt in zip(got, prompts, strict=True):
            np.testing.assert_array_equal(candidates[0].codes, uncached(model, prompt, 12, strength))


def test_a_seed_speaks_the_same_alone_and_in_a_batch_and_candidates_differ() -> None:
    model, prompts = build(), make_prompts()
    sampling = SamplingConfig(ar={"temperature": 1.0}, guidance=0.5, candidates=3)
    together = decode(model, prompts, sampling, [7, 8, 9], [10, 6, 10])
    for i, limit in enumerate((10, 6, 10)):
        alone = decode(model, prompts[i : i + 1], sampling, [7 + i], [limit])[0]
        for a, b in zip(together[i], alone, strict=True):
            np.testing.assert_array_equal(a.codes, b.codes)
            assert a.score == pytest.approx(b.score, abs=1e-4)
            assert a.codes.shape[1] <= limit
    assert len({c.codes.tobytes() for c in together[0]}) == 3


def test_stop_ends_a_row_and_the_limit_is_reported() -> None:
    model = build()
    with torch.no_grad():
        model.heads.first.weight.zero_()
        model.backbone.norm.weight.fill_(1.0)
    prompts = make_prompts(2)
    sampling = SamplingConfig(ar={"temperature": 1.0}, guidance=0.0, candidates=1)
    rows = [c[0] for c in decode(model, prompts * 8, sampling, list(range(16)), [400] * 16)]
    lengths = [row.codes.shape[1] for row in rows]  # uniform logits: each frame stops with probability 1 / (n + 1)
    assert all(row.finished == (length < 400) for row, length in zip(rows, lengths, strict=True))
    assert 3 < np.mean(lengths) < 40
    cut = decode(model, prompts, sampling, [5, 11], [1, 1])
    assert all(c[0].codes.shape[1] <= 1 for c in cut)


def test_settings_of_both_passes_reach_the_decoder() -> None:
    model, prompts = build("ar+nar"), make_prompts(1)

    def length(**settings: object) -> int:
        ar = SamplingParams(**({"temperature": 0.0, "banned": (0,)} | settings))
        codes = decode(model, prompts, GREEDY.model_copy(update={"ar": ar}), [0], [30])[0][0].codes
        assert not (codes == 0).any()
        return codes.shape[1]

    assert length(length_penalty=100.0, banned=(0, CODES)) == 30 > length(length_penalty=-100.0) == 1
    first = [np.ones((1, 40), dtype=np.int64)]
    greedy, hot, again = (
        fill_levels(model, prompts, first, SamplingConfig(nar=nar), [0])[0]
        for nar in ({}, {"temperature": 9.0}, {"temperature": 9.0, "top_k": 1})
    )
    assert np.array_equal(greedy, again) and not np.array_equal(greedy, hot)


def test_repetition_penalty_reaches_the_decoder() -> None:
    model, prompts = build(), make_prompts(1)
    with torch.no_grad():
        model.heads.first.weight[CODES].zero_()  # the greatest of eleven random logits is above 0: no early stop
    penalties = (
        GREEDY.model_copy(update={"ar": SamplingParams(temperature=0.0, repetition_penalty=p)}) for p in (1, 50)
    )
    plain, harsh = (decode(model, prompts, settings, [0], [CODES])[0][0].codes[0] for settings in penalties)
    assert len(set(plain.tolist())) < len(plain)
    assert len(set(harsh.tolist())) == len(harsh) > 0


def test_levels_are_filled_as_teacher_forcing_would() -> None:
    model, prompts = build("ar+nar"), make_prompts(2)
    rng = np.random.default_rng(1)
    first = [rng.integers(CODES, size=(1, n)) for n in (5, 3)]
    given = [np.concatenate((f, np.full((LEVELS - 1, f.shape[1]), CODES))) for f in first]
    out = fill_levels(model, prompts, given, SamplingConfig(), [0, 1])
    for prompt, level0, codes in zip(prompts, first, out, strict=True):
        np.testing.assert_array_equal(codes[:1], level0)
        for level in range(1, LEVELS):
            packed = pack([replace(prompt, response=codes, level=level, mode="level", spoken=None)], model.layout)
            with torch.no_grad():
                logits = model.heads(model.hidden(packed)[0, int(packed.response[0]) + 1 :], level, [])
            np.testing.assert_array_equal(codes[level], logits.argmax(-1).numpy())


@pytest.mark.parametrize("kind", ["ar", "v2-ar"])
@pytest.mark.parametrize("block", [2, 3])
def test_several_frames_a_step_equal_uncached_blocks(kind: str, block: int) -> None:
    """k frames at once, each from its own position; a block is trimmed at a stop inside it."""
    model, prompts = build(kind, causal_size=block), make_prompts()
    for row, (prompt, found) in enumerate(zip(prompts, decode(model, prompts, GREEDY, [0] * 3, [11] * 3), strict=True)):
        codes, ended = prompt.response, False
        while codes.shape[1] < 11 and not ended:
            packed = pack([replace(prompt, response=codes, spoken=None)], model.layout)
            states = model.heads.prepare(model.hidden(packed)[0, -block:])
            frames = torch.stack([model.heads(states, i, []).argmax(-1) for i in range(model.layout.shown)]).numpy()
            ended = CODES in frames[0]
            frames = frames[:, : frames[0].tolist().index(CODES)] if ended else frames
            whole = np.zeros((LEVELS, frames.shape[1]), dtype=np.int64)
            whole[: len(frames)] = frames
            codes = np.concatenate((codes, whole), axis=1)[:, :11]
        np.testing.assert_array_equal(found[0].codes, codes[: model.layout.shown], err_msg=f"row {row}")


@pytest.mark.parametrize("task", ["stt", "phn", "un-phn", "len"])
def test_written_outputs_cached_equal_uncached(task: str) -> None:
    model = build("ar+nar", tasks=("tts", task))
    head = model.symbol_heads[TASKS[task].output]
    wanted = [of_task(task, seed, response=4 + 3 * seed) for seed in range(3)]
    prompts = [replace(s, symbols=s.symbols[:0]) for s in wanted]
    stop = model.layout.stop(TASKS[task].output)
    for prompt, found in zip(prompts, decode(model, prompts, GREEDY, [0] * 3, [7] * 3), strict=True):
        symbols: list[int] = []
        while len(symbols) < 7:
            packed = pack([replace(prompt, symbols=np.array(symbols, dtype=np.int64))], model.layout)
            symbols.append(int(head(model.hidden(packed)[0, -1]).argmax()))
            if symbols[-1] == stop:
                break
        assert found[0].codes[0].tolist() == [s for s in symbols if s != stop]


def test_rows_that_write_differently_are_refused() -> None:
    model = build("ar+nar", tasks=("tts", "stt"))
    with pytest.raises(ValueError, match="one vocabulary"):
        decode(model, [of_task("stt"), of_task("tts")], GREEDY, [0, 0], [3, 3])
