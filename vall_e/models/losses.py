"""What training minimises. Dimensions: B rows, T positions, L levels, M positions of any rows, D width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.models.heads import DurationHead
from vall_e.models.packing import IGNORE, Packed

SHAPES = 128  # what a head is given is rounded up to a multiple of this: few shapes, see vall_e.data.batches


@dataclass
class Found:
    """Losses with their weights, and figures to show."""

    losses: list[Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    figures: dict[str, Tensor] = field(default_factory=dict)

    def mean(self) -> Tensor:
        """Weighted mean of the losses, scalar."""
        if not self.losses:
            raise ValueError("nothing to predict in this batch: every target is IGNORE")
        weights = torch.tensor(self.weights, device=self.losses[0].device)
        return (torch.stack(self.losses) * weights).sum() / weights.sum()

    def note(self, name: str, value: Tensor) -> Tensor:
        """Show ``value`` as a figure, and give it back."""
        self.figures[name] = value.detach()
        return value

    def add(self, name: str, logits: Tensor, wanted: Tensor, smoothing: float, weight: float) -> None:
        """The cross entropy of logits [M, V] against int64 [M], IGNORE where nothing is wanted."""
        loss = F.cross_entropy(logits.float(), wanted, ignore_index=IGNORE, label_smoothing=smoothing)
        self.losses.append(loss)
        self.weights.append(weight)
        self.figures[f"loss.{name}"] = loss.detach()
        self.figures[f"accuracy.{name}"] = (logits.argmax(-1) == wanted).sum() / (wanted != IGNORE).sum()


def of_codes(
    found: Found, heads: nn.Module, hidden: Tensor, target: Tensor, smoothing: float, factors: Sequence[float]
) -> None:
    """Add the loss of every level that ``target`` int64 [B, L, T] asks for, from hidden states [B, T, D]."""
    flat, wanted = hidden.flatten(0, 1), target.transpose(1, 2).flatten(0, 1)
    known = wanted != IGNORE
    asked = [level for level, factor in enumerate(factors) if factor > 0 and bool(known[:, level].any())]
    if asked and heads.together:
        index = _indices(known.any(1))
        states = heads.prepare(flat[index])
    for level in asked:
        if not heads.together:
            index = _indices(known[:, level])
            states = heads.prepare(flat[index])
        here = wanted[index]
        drawn = [torch.where(here[:, level] == IGNORE, 0, here[:, k]).clamp(min=0) for k in range(level)]
        found.add(str(level), heads(states, level, drawn), here[:, level], smoothing, factors[level])


def of_symbols(
    found: Found, vocabulary: str, head: nn.Module, hidden: Tensor, written: Tensor, smoothing: float
) -> None:
    """Add the loss of what is written: hidden states [R, T, D] of the rows that write, ids int64 [R, T]."""
    at = written != IGNORE
    if bool(at.any()):
        found.add(vocabulary, head(hidden[at]), written[at], smoothing, 1.0)


def of_duration(head: DurationHead, hidden: Tensor, packed: Packed) -> Tensor:
    """Smooth L1 between log frames and what the START of the masked rows says, scalar; 0 without such rows."""
    rows = torch.arange(len(hidden), device=hidden.device)
    frames = packed.lengths - packed.response - 1
    known = packed.parallel & (packed.level == 0) & (frames > 0)
    if not bool(known.any()):
        return hidden.new_zeros(())
    said = head(hidden[rows, packed.response][known])
    return F.smooth_l1_loss(said.float(), frames[known].float().log(), beta=0.1)


def _indices(at: Tensor) -> Tensor:
    """Indices int64 [M] of what is true in ``at`` [B * T]; to fill up, position 0, where nothing is predicted."""
    index = at.nonzero()[:, 0]
    return F.pad(index, (0, -len(index) % SHAPES))
