"""Figures of batches: rows together against rows alone, rows that end, forwards that are counted. A key each."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.decode.bench import PHONES, Bench, Size, prompts, ragged_lengths
from benchmarks.decode.steps import Stepper, plain, run
from benchmarks.decode.timing import interleaved, median_ratio
from vall_e.decoding import DemaskConfig
from vall_e.generation.demask import demask
from vall_e.generation.nar import fill_levels
from vall_e.models.vall_e import VallE

ROWS = 8
BATCHES = (1, 2, 4, 8, 16)
LEVELS, CODES, DEMASK_STEPS = 8, 64, 16


def batch8_over_single(bench: Bench) -> dict[str, float]:
    """Tokens a second of eight prompts of eight lengths, whose outputs end at eight lengths, over those of the same
    eight one after the other: tiny model in float32, and the reference in its best weight format. Target: 3 each."""
    values, details = {}, {}
    for name, size, weights in (("tiny", "tiny", "float32"), ("ref_best", "ref", bench.options.best)):
        model, tokens = bench.model(size, weights), bench.tokens(size)
        rows, lengths = bench.prompts(ROWS), ragged_lengths(ROWS, tokens)

        def alone(model: VallE = model, rows: list = rows, lengths: list = lengths) -> None:
            for row, length in zip(rows, lengths, strict=True):
                run(model, [row], [length])

        together, single = interleaved(
            bench.options.pairs,
            lambda model=model, rows=rows, lengths=lengths: run(model, rows, lengths),
            alone,
        )
        values[name] = median_ratio(single, together)
        details[name] = {
            "weights": weights,
            "tokens_per_second": sum(lengths) / statistics.median(together),
            "single_tokens_per_second": sum(lengths) / statistics.median(single),
            "by_batch": by_batch(bench, size, weights),
        }
    bench.details["batch8_over_single"] = details
    return values


def by_batch(bench: Bench, size: Size, weights: str) -> dict[int, float]:
    """Tokens a second at each batch size, prompts ragged and outputs of one length: median of three."""
    model, tokens = bench.model(size, weights), max(2, bench.tokens(size) // 2)
    batches = [bench.prompts(rows) for rows in BATCHES]
    works = [lambda rows=rows: run(model, rows, [tokens] * len(rows)) for rows in batches]
    took = interleaved(min(3, bench.options.pairs), *works)
    return {b: b * tokens / statistics.median(t) for b, t in zip(BATCHES, took, strict=True)}


def finished_rows_overhead(bench: Bench) -> float:
    """What rows that have ended still cost: seconds of eight rows that end one after the other, over the sum of what
    each step should take with the rows that are then live. Tiny model.

    A step's fair price at each number of live rows is measured on its own, in batches of that many rows which all go
    on, in turns with the staggered run; prefills of both are taken out. 1 is free; target: at most 1.2.
    """
    model, options = bench.model("tiny"), bench.options
    share = max(options.steps, options.tiny_tokens // ROWS)  # steps until the next row ends
    rows = bench.prompts(ROWS)
    lengths = [1 + share * (row + 1) for row in range(ROWS)]
    most = share * (options.pairs + 1) + 1
    fair = [Stepper(model, rows[:live], most) for live in range(1, ROWS + 1)]
    works: list[Callable[[], object]] = [
        lambda: run(model, rows, lengths),
        lambda: run(model, rows, [1] * ROWS),
        *(lambda s=stepper: s.step(share) for stepper in fair),
    ]
    whole, prefill, *steps = interleaved(options.pairs, *works)
    expected = [sum(at) for at in zip(*steps, strict=True)]
    staggered = [w - p for w, p in zip(whole, prefill, strict=True)]
    bench.details["finished_rows_overhead"] = {
        "steps_between_ends": share,
        "step_ms_by_live_rows": [1000 * statistics.median(t) / share for t in steps],
    }
    return median_ratio(staggered, expected)


def forwards(bench: Bench) -> dict[str, int]:
    """Forwards through the layers, counted by a hook on the first of them: ``nar`` for all levels above 0 of three
    rows (target: at most L - 1 = 7), ``demask`` for 16 steps with guidance (target: 16, both halves in one batch)."""
    tiny = bench.options.tiny.model_copy(update={"kind": "ar+nar-len"})
    model = VallE(tiny, LEVELS, CODES, PHONES).eval()
    made = prompts(3, CODES)
    rows = [replace(row, prompt=row.prompt.repeat(LEVELS, 0), response=row.response.repeat(LEVELS, 0)) for row in made]
    seeds, lengths = [0, 1, 2], [5, 9, 7]
    rng = np.random.default_rng(0)
    first = [rng.integers(CODES, size=(1, length)) for length in lengths]
    settings = DemaskConfig(steps=DEMASK_STEPS, guidance=2.0)
    bench.details["forwards"] = {"levels": LEVELS, "demask_steps": DEMASK_STEPS, "rows": len(rows)}
    return {
        "nar": counted(model, lambda: fill_levels(model, rows, first, plain(), seeds)),
        "demask": counted(model, lambda: demask(model, rows, [40] * 3, settings, seeds)),
    }


def counted(model: VallE, work: Callable[[], object]) -> int:
    """How often ``work`` runs the model's layers."""
    calls: list[None] = []
    hook = model.backbone.blocks[0].register_forward_hook(lambda *_: calls.append(None))
    try:
        work()
    finally:
        hook.remove()
    return len(calls)
