"""The engine's interface over today's decoder: rows are added once, then stepped."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vall_e.decoding import SamplingConfig
from vall_e.generation import ar
from vall_e.generation.speculative import speculate
from vall_e.models.packing import Sample
from vall_e.models.vall_e import VallE


def decode(
    model: VallE, prompts: Sequence[Sample], sampling: SamplingConfig, seeds: Sequence[int], longest: Sequence[int]
) -> list[list[ar.Candidate]]:
    """With drafts where the settings ask for them."""
    draw = ar.decode if sampling.speculation is None else speculate
    return draw(model, prompts, sampling, seeds, longest)


class Engine:
    def __init__(self, model: VallE, sampling: SamplingConfig) -> None:
        self.model, self.sampling, self.frame = model, sampling, 0

    def add(self, prompts: Sequence[Sample], seeds: Sequence[int], longest: Sequence[int]) -> None:
        self.decoder = ar._Decoder(self.model, prompts, self.sampling, seeds, longest)

    def step(self) -> int:
        """Draw one frame of each row and show it to the model; returns how many rows are still live."""
        decoder = self.decoder
        codes = decoder._draw(0)
        decoder._keep(codes, self.frame)
        self.frame += 1
        going = ~decoder.done
        if bool(going.any()):
            codes = decoder._leave(going, codes) if not bool(going.all()) else codes
            decoder.last = decoder._step(torch.stack([codes], dim=-1))
        return int(going.sum())
