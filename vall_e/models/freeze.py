"""Parts of a model that a training leaves as they are, named by patterns.

A pattern is the beginning of a parameter's name, part by part: ``embeddings``, ``embeddings.symbol``,
``backbone.norm``, ``heads``. ``blocks`` stands for ``backbone.blocks``; a part may be a range of numbers
(``blocks.0-3``) or hold wildcards (``blocks.*.attention``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

_RANGE = re.compile(r"(\d+)-(\d+)")
_BLOCKS = "backbone.blocks"


def freeze(model: nn.Module, frozen: Sequence[str], trained: Sequence[str] = ()) -> int:
    """Take parts of ``model`` out of training, or into it.

    Args:
        frozen: patterns of what stays as it is (``train.freeze``).
        trained: patterns of what is trained all the same (``train.thaw``): of what ``frozen`` names, or of the model
            behind adapters.

    Returns:
        the number of parameters that are trained.

    Raises:
        ValueError: a pattern that names nothing, with what there is; or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for key, patterns, wanted in (("train.freeze", frozen, False), ("train.thaw", trained, True)):
        for pattern in patterns:
            found = [name for name in parameters if matches(pattern, name)]
            if not found:
                raise ValueError(f"{key}: {pattern!r} names no part of this model; there are {', '.join(parts(model))}")
            for name in found:
                parameters[name].requires_grad_(wanted)
    left = sum(p.numel() for p in parameters.values() if p.requires_grad)
    if not left:
        raise ValueError(
            f"train.freeze {list(frozen)} leaves nothing to train: name fewer parts, or some in train.thaw"
        )
    return left


def matches(pattern: str, name: str) -> bool:
    """Whether the parameter ``name`` belongs to the part that ``pattern`` names."""
    pieces = (_BLOCKS + pattern[len("blocks") :] if pattern.split(".")[0] == "blocks" else pattern).split(".")
    have = name.split(".")
    return len(pieces) <= len(have) and all(map(_fits, pieces, have))


def _fits(piece: str, part: str) -> bool:
    if (ends := _RANGE.fullmatch(piece)) is not None:
        return part.isdigit() and int(ends[1]) <= int(part) <= int(ends[2])
    return fnmatchcase(part, piece)


def parts(model: nn.Module) -> list[str]:
    """Names of the parts, two deep, as patterns; the blocks as one range."""
    out: dict[str, None] = {}
    last = -1
    for name, _ in model.named_parameters():
        pieces = name.split(".")
        if name.startswith(f"{_BLOCKS}."):
            last = max(last, int(pieces[2]))
            out[f"blocks.0-{last}"] = None
            out.pop(f"blocks.0-{last - 1}", None)
        else:
            out |= dict.fromkeys((pieces[0], ".".join(pieces[:2])))
    return list(out)
