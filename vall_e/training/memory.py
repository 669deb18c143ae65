"""A batch that does not fit, in pieces: rows that follow one another, whose gradients add up to the whole batch's.

The losses are means over what is to be predicted, so each piece is told its share of the whole batch's targets. What is
no mean over targets (the load balance of experts) is a mean over pieces. Dimensions: B rows, T positions, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch

from vall_e.models.losses import targets
from vall_e.models.packing import Packed

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


def is_memory_error(error: BaseException) -> bool:
    """A device, or the machine, had no room for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_ROOM)
