"""Stands in for ``vall_e.generation.engine`` where that is not there yet: decodes at once, tells block by block."""

from __future__ import annotations

import importlib.util
import sys

from vall_e.generation.ar import Candidate, decode

__all__ = ["Candidate", "Engine", "install"]


class Row:
    def __init__(self, candidate: Candidate) -> None:
        self.candidate, self.count = candidate, 0

    @property
    def codes(self):
        return self.candidate.codes[:, : self.count]

    @property
    def done(self) -> bool:
        return self.count >= self.candidate.codes.shape[1]


class Ticket:
    def __init__(self, candidates: list[Candidate]) -> None:
        self.rows = [Row(c) for c in candidates]

    @property
    def done(self) -> bool:
        return all(row.done for row in self.rows)

    def candidates(self) -> list[Candidate]:
        return [row.candidate for row in self.rows]


class Engine:
    def __init__(self, model, sampling, vocabulary="codes") -> None:
        self.model, self.sampling, self.rows = model, sampling, []

    def add(self, prompts, seeds, longest) -> list[Ticket]:
        tickets = [Ticket(c) for c in decode(self.model, prompts, self.sampling, seeds, longest)]
        self.rows += [row for ticket in tickets for row in ticket.rows]
        self.step()
        return tickets

    def step(self) -> int:
        for row in self.rows:
            row.count = min(row.count + self.model.layout.block, row.candidate.codes.shape[1])
        self.rows = [row for row in self.rows if not row.done]
        return len(self.rows)


def install() -> None:
    """Put this module in the engine's place, unless the real one is there."""
    if importlib.util.find_spec("vall_e.generation.engine") is None:
        sys.modules["vall_e.generation.engine"] = sys.modules[__name__]
