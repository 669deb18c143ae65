"""What training minimises. Dimensions: B rows, T positions, L levels, M positions of any rows, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.models.heads import DurationHead
from vall_e.models.packing import IGNORE, Packed
from vall_e.tasks import NAMES, SYMBOLS, VOCABULARIES

SHAPES = 128  # what a head is given is rounded up to a multiple of this: few shapes, see vall_e.data.batches


@dataclass(frozen=True)
class Guide:
    """What a teacher would have said of the same batch (distillation, 1503.02531, section 2).

    Attributes:
        logits: by the names of ``Found.add``, [M, V].
        weight: share of the loss that is the divergence from it.
        temperature: both distributions are flattened by it.
    """

    logits: Mapping[str, Tensor]
    weight: float
    temperature: float

    def divergence(self, name: str, logits: Tensor, known: Tensor) -> Tensor:
        """Mean of KL(teacher || student) in nats over the ``known`` bool [M] of logits [M, V], scalar."""
        ours = (logits[known].float() / self.temperature).log_softmax(-1)
        theirs = (self.logits[name][known].float() / self.temperature).log_softmax(-1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class Kept(dict[str, Tensor]):
    """In place of ``Found``: the logits alone."""

    def add(self, name: str, logits: Tensor, *_: object) -> None:
        self[name] = logits

    def elsewhere(self, *_: object) -> None:
        """Nothing is predicted here."""


@dataclass(kw_only=True)
class Found:
    """Losses with their weights.

    Attributes:
        shares: of a piece of a batch, factors on its losses by kind of target; none for a whole batch.
        total: weights of all losses that the whole batch has.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    total: float = 0.0

    def mean(self, hidden: Tensor) -> Tensor:
        """Weighted mean of the losses, scalar; 0 for a piece of ``hidden`` states that nothing is predicted from."""
        if not self.losses:
            if self.shares:
                return hidden.sum() * 0.0
            raise ValueError("nothing to predict in this batch: every target is IGNORE")
        return self._mean(self.losses)

    def _mean(self, values: list[Tensor]) -> Tensor:
        weights = torch.tensor(self.weights, device=values[0].device)
        return (torch.stack(values) * weights).sum() / self.total

    def elsewhere(self, name: str, weight: float) -> None:
        """Not in this piece: the loss ``name`` counts where other pieces have it."""
        if name in self.shares:
            self.total += weight

    def add(self, name: str, logits: Tensor, wanted: Tensor, rows: Tensor, smoothing: float, weight: float) -> None:
        """The cross entropy of logits [M, V] against int64 [M], IGNORE where nothing is wanted, of ``rows`` int64
        [M]."""
        known = wanted != IGNORE
        each = F.cross_entropy(logits.float(), wanted, ignore_index=IGNORE, label_smoothing=smoothing, reduction="none")
        self.losses.append(self._learned(name, logits, wanted, rows, known, each))
        self.weights.append(weight * self.shares.get(name, 1.0))
        self.total += weight

    def _learned(self, name: str, logits: Tensor, wanted: Tensor, rows: Tensor, known: Tensor, each: Tensor) -> Tensor:
        """The loss, scalar, of ``known`` bool [M] positions with losses [M]."""
        return each.sum() / known.sum()


@dataclass(kw_only=True)
class Shown(Found):
    """Losses with figures to show.

    Attributes:
        tasks: int64 [B], of each row, from 1 (``Packed.header``).
        guide: of a teacher; None learns from the recordings alone.
    """

    tasks: Tensor
    guide: Guide | None = None
    figures: dict[str, Tensor] = field(default_factory=dict)
    divergences: list[Tensor] = field(default_factory=list)
    by_task: list[Tensor] = field(default_factory=list)

    def note(self, name: str, value: Tensor) -> Tensor:
        """Show ``value`` as a figure, and give it back."""
        self.figures[name] = value.detach()
        return value

    def _learned(self, name: str, logits: Tensor, wanted: Tensor, rows: Tensor, known: Tensor, each: Tensor) -> Tensor:
        """With a guide the weighted mean of the cross entropy and the divergence, whose gradient is brought to the size
        that it has without a temperature (times the square of it)."""
        right = logits.argmax(-1) == wanted
        loss = self.note(f"loss.{name}", super()._learned(name, logits, wanted, rows, known, each))
        self.figures[f"accuracy.{name}"] = right.sum() / known.sum()
        each = torch.stack((each.detach(), right.float(), known.float()))
        sums = each.new_zeros(3, len(NAMES) + 1)
        self.by_task.append(sums.index_add_(1, self.tasks[rows], each))
        if self.guide is not None:
            value = self.guide.divergence(name, logits, known)
            self.divergences.append(value.detach())
            share = self.guide.weight
            loss = (1 - share) * loss + share * self.guide.temperature**2 * value
        return loss

    def summarise(self) -> dict[str, Tensor]:
        """The figures, with those of each task of the batch (``loss.tts``: the mean over all that its rows predict) and
        the mean divergence from the guide (``distill``)."""
        if not self.by_task:
            return self.figures
        loss, right, count = torch.stack(self.by_task).sum(0)
        for task in count.nonzero()[:, 0].tolist():
            self.figures[f"loss.{NAMES[task - 1]}"] = loss[task] / count[task]
            self.figures[f"accuracy.{NAMES[task - 1]}"] = right[task] / count[task]
        if self.divergences:
            self.figures["distill"] = self._mean(self.divergences)
        return self.figures


def of_codes(
    found: Found | Kept,
    heads: nn.Module,
    hidden: Tensor,
    target: Tensor,
    smoothing: float,
    factors: Mapping[str, float],
) -> None:
    """Add the loss of every level that ``target`` int64 [B, L, T] asks for, from hidden states [B, T, D]; of those
    without a factor it is 1."""
    flat, wanted = hidden.flatten(0, 1), target.transpose(1, 2).flatten(0, 1)
    known = wanted != IGNORE
    weights = [factors.get(f"level{level}", 1.0) for level in range(target.shape[1])]
    asked = [level for level, factor in enumerate(weights) if factor > 0 and bool(known[:, level].any())]
    for level, factor in enumerate(weights):
        if factor > 0 and level not in asked:
            found.elsewhere(f"level{level}", factor)
    if asked and heads.together:
        index = _indices(known.any(1))
        states = heads.prepare(flat[index])
    for level in asked:
        if not heads.together:
            index = _indices(known[:, level])
            states = heads.prepare(flat[index])
        here = wanted[index]
        drawn = [torch.where(here[:, level] == IGNORE, 0, here[:, k]).clamp(min=0) for k in range(level)]
        rows = index // target.shape[2]
        found.add(f"level{level}", heads(states, level, drawn), here[:, level], rows, smoothing, weights[level])


def of_symbols(
    found: Found | Kept,
    vocabulary: str,
    head: nn.Module,
    hidden: Tensor,
    written: Tensor,
    writes: Tensor,
    smoothing: float,
    factor: float,
) -> None:
    """Add the loss of what is written: hidden states [B, T, D], ids int64 [B, T], by the rows bool [B] that write."""
    at = (written != IGNORE) & writes[:, None]
    if bool(at.any()):
        found.add(vocabulary, head(hidden[at]), written[at], at.nonzero()[:, 0], smoothing, factor)
    else:
        found.elsewhere(vocabulary, factor)


def of_duration(head: DurationHead, hidden: Tensor, packed: Packed) -> Tensor:
    """Smooth L1 between log frames and what the START of the masked rows says, scalar; 0 without such rows."""
    rows = torch.arange(len(hidden), device=hidden.device)
    frames, known = _durations(packed)
    if not bool(known.any()):
        return hidden.new_zeros(())
    said = head(hidden[rows, packed.response][known])
    return F.smooth_l1_loss(said.float(), frames[known].float().log(), beta=0.1)


def _durations(packed: Packed) -> tuple[Tensor, Tensor]:
    """Frames int64 [B] of each response, and the rows bool [B] whose START says so."""
    frames = packed.lengths - packed.response - 1
    return frames, packed.parallel & (packed.level == 0) & (frames > 0)


def targets(packed: Packed) -> dict[str, int]:
    """How many targets there are, by kind: a level, a vocabulary, ``alignment``, ``duration``; no kind without any."""
    counts = {f"level{level}": int(n) for level, n in enumerate((packed.target != IGNORE).sum((0, 2)))}
    for vocabulary in SYMBOLS:
        rows = packed.vocabulary == VOCABULARIES.index(vocabulary)
        counts[vocabulary] = int((packed.written[rows] != IGNORE).sum())
    counts |= {"alignment": int((packed.spoken[:, 0] >= 0).sum()), "duration": int(_durations(packed)[1].sum())}
    return {kind: count for kind, count in counts.items() if count}


def _indices(at: Tensor) -> Tensor:
    """Indices int64 [M] of what is true in ``at`` [B * T]; to fill up, position 0, where nothing is predicted."""
    index = at.nonzero()[:, 0]
    return F.pad(index, (0, -len(index) % SHAPES))
