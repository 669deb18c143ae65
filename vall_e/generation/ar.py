"""Decoding a batch of prompts to the end. Dimensions: see ``vall_e.generation.engine``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vall_e.decoding import SamplingConfig
from vall_e.generation.engine import Candidate, Engine
from vall_e.models.packing import Sample
from vall_e.models.vall_e import VallE


def decode(
    model: VallE,
    prompts: Sequence[Sample],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    longest: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
    shortest: Sequence[int] | None = None,
    draft: VallE | None = None,
) -> list[list[Candidate]]:
    """Decode ``sampling.candidates`` outputs for each prompt, whose tasks all have the same output vocabulary.

    Args:
        prompts, seeds, longest: as of ``Engine.add``.
        progress: called with (frames so far, live rows).
        draft: as of ``Engine``.

    Returns:
        per prompt its candidates in order.
    """
    engine = Engine(model, sampling, prompts[0].vocabulary, draft)
    tickets = engine.add(prompts, seeds, longest, shortest)
    while engine.step():
        if progress is not None:
            progress(max(row.count for row in engine.rows), len(engine.rows))
    return [ticket.candidates() for ticket in tickets]
