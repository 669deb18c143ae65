"""A batch that does not fit, in pieces: rows that follow one another, whose gradients add up to the whole batch's.

The losses are means over what is to be predicted, so each piece is told its share of the whole batch's targets. What is
no mean over targets (the load balance of experts) is a mean over pieces. Dimensions: B rows, T positions, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch

from vall_e.models.losses import targets
from vall_e.models.packing import IGNORE, Packed
from vall_e.models.vall_e import VallE
from vall_e.tasks import NAMES

_NO_ROOM = (  # what torch's own RuntimeErrors say where it has no class for them
    "not enough memory",
    "can't allocate memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",  # of cuBLAS, cuDNN and others
)


@dataclass(frozen=True)
class Piece(Packed):
    """Some rows of a batch.

    Attributes:
        shares: of the whole batch's targets, as ``VallE.loss`` takes them.
    """

    shares: Mapping[str, float] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Piece:
        return Piece(*(tensor.to(device) for tensor in _tensors(self)), self.shares)


def _tensors(packed: Packed) -> list[torch.Tensor]:
    return [getattr(packed, item.name) for item in fields(Packed)]


def split(packed: Packed, pieces: int) -> list[Packed]:
    """Cut a batch into pieces of as equal a number of rows as can be.

    Returns:
        the batch itself where ``pieces`` is 1, else so many pieces; of a batch with fewer rows some are its first row
        with shares of 0, so that each batch has as many.
    """
    if pieces == 1:
        return [packed]
    whole, rows = targets(packed), len(packed.symbol)
    out = []
    for number in range(pieces):
        first, last = (rows * n // pieces for n in (number, number + 1))
        empty = first == last
        piece = Packed(*(tensor[slice(0, 1) if empty else slice(first, last)] for tensor in _tensors(packed)))
        here = {} if empty else targets(piece)
        shares = {kind: pieces * here.get(kind, 0) / count for kind, count in whole.items()}
        out.append(Piece(*_tensors(piece), shares))
    return out


def figures_of(model: VallE, packed: Packed, pieces: int) -> dict[str, torch.Tensor]:
    """``loss`` and the figures of ``VallE.loss`` for a batch that comes in ``pieces``, at most as many as it has rows:
    the means over the whole batch's targets."""
    if pieces == 1:
        loss, figures = model.loss(packed)
        return figures | {"loss": loss}
    sums: dict[str, torch.Tensor] = {}
    weights: dict[str, float] = {}
    for piece in split(packed, pieces):
        loss, figures = model.loss(piece, shares=piece.shares)
        for name, value in (figures | {"loss": loss}).items():
            weight = 1.0 if name == "loss" else _targets_of(name, piece)
            sums[name] = sums.get(name, 0.0) + weight * value
            weights[name] = weights.get(name, 0.0) + weight
    return {name: value / weights[name] for name, value in sums.items()}


def _targets_of(name: str, piece: Piece) -> float:
    """How many targets the figure ``name`` is a mean over, to a factor that is the same in each piece."""
    kind = {"phone": "alignment"}.get(name, name.rpartition(".")[2])
    if kind in piece.shares:
        return piece.shares[kind]
    rows = piece.header[:, 0] == 1 + NAMES.index(kind)
    return int((piece.target[rows] != IGNORE).sum() + (piece.written[rows] != IGNORE).sum())


def is_memory_error(error: BaseException) -> bool:
    """A device, or the machine, had no room for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_ROOM)
