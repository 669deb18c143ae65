"""Decoding: cached equals uncached, rows do not depend on their batch, limits, candidates, levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.generation.oracle import GREEDY, make_prompts, uncached
from tests.tiny import CODES, LEVELS, build
from vall_e.config import SamplingConfig
from vall_e.generation.ar import decode_frames
from vall_e.generation.nar import fill_levels
from vall_e.models.packing import pack

KINDS = ("ar-depth", "ar+nar")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 1.5])
@pytest.mark.parametrize("positions", ["segment", "sequence"])
def test_cached_ragged_batch_equals_uncached_single_rows(kind: str, strength: float, positions: str) -> None:
    model, prompts = build(kind, positions=positions), make_prompts()
    prompts[1] = replace(prompts[1], response=prompts[2].prompt[:, :2], spoken=None)  # one row goes on from a prefix
    got = decode_frames(model, prompts, GREEDY.model_copy(update={"guidance": strength}), [0, 1, 2], [12, 12, 12])
    with torch.no_grad():
        for candidates, prompt in zip(got, prompts, strict=True):
            np.testing.assert_array_equal(candidates[0].codes, uncached(model, prompt, 12, strength))


def test_a_seed_speaks_the_same_alone_and_in_a_batch_and_candidates_differ() -> None:
    model, prompts = build(), make_prompts()
    sampling = SamplingConfig(temperature=1.0, guidance=0.5, candidates=3)
    together = decode_frames(model, prompts, sampling, [7, 8, 9], [10, 6, 10])
    for i, limit in enumerate((10, 6, 10)):
        alone = decode_frames(model, prompts[i : i + 1], sampling, [7 + i], [limit])[0]
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
    sampling = SamplingConfig(temperature=1.0, guidance=0.0, candidates=1)
    rows = [c[0] for c in decode_frames(model, prompts * 8, sampling, list(range(16)), [400] * 16)]
    lengths = [row.codes.shape[1] for row in rows]  # uniform logits: each frame stops with probability 1 / (n + 1)
    assert all(row.finished == (length < 400) for row, length in zip(rows, lengths, strict=True))
    assert 3 < np.mean(lengths) < 40
    cut = decode_frames(model, prompts, sampling, [5, 11], [1, 1])
    assert all(c[0].codes.shape[1] <= 1 for c in cut)


def test_repetition_penalty_reaches_the_decoder() -> None:
    model, prompts = build(), make_prompts(1)
    with torch.no_grad():
        model.heads.first.weight[CODES].zero_()  # the greatest of eleven random logits is above 0: no early stop
    plain, harsh = (
        decode_frames(model, prompts, GREEDY.model_copy(update={"repetition_penalty": p}), [0], [CODES])[0][0].codes[0]
        for p in (1.0, 50.0)
    )
    assert len(set(plain.tolist())) < len(plain)
    assert len(set(harsh.tolist())) == len(harsh) > 0


def test_levels_are_filled_as_teacher_forcing_would() -> None:
    model, prompts = build("ar+nar"), make_prompts(2)
    rng = np.random.default_rng(1)
    first = [rng.integers(CODES, size=(1, n)) for n in (5, 3)]
    out = fill_levels(model, prompts, first, SamplingConfig(), [0, 1])
    for prompt, level0, codes in zip(prompts, first, out, strict=True):
        np.testing.assert_array_equal(codes[:1], level0)
        for level in range(1, LEVELS):
            packed = pack([replace(prompt, response=codes, level=level, spoken=None)], model.layout)
            with torch.no_grad():
                logits = model.heads(model.hidden(packed)[0, int(packed.response[0]) + 1 :], level)
            np.testing.assert_array_equal(codes[level], logits.argmax(-1).numpy())
