"""Fewer key/value heads in trained weights: multi-head to grouped-query to multi-query attention (2305.13245).

Dimensions: D width, G key/value heads before, g after, d width of a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_SHARED = re.compile(r"(^|\.)attention\.[kv]\.weight")


def pool_heads(weight: Tensor, heads: int, groups: int) -> Tensor:
    """Mean of the neighbouring heads of each group (2305.13245, section 2.1): [G d, D] → [g d, D], same dtype.

    ``vall_e.nn.attention`` gives neighbouring query heads the same key head, so neighbours belong together. Sums are
    in float64: the mean of equal heads is that head, bit for bit.

    Raises:
        ValueError: ``groups`` does not divide ``heads``.
    """
    if heads % groups:
        raise ValueError(f"{heads} key/value heads cannot be pooled to {groups}: {groups} does not divide {heads}")
    apart = weight.unflatten(0, (groups, heads // groups, -1))
    return apart.double().mean(1).flatten(0, 1).to(weight.dtype)


def with_kv_heads(state: Mapping[str, Tensor], heads: int, groups: int) -> dict[str, Tensor]:
    """A state dict of ours whose attention layers have ``groups`` key/value heads instead of ``heads``.

    Raises:
        ValueError: it has no attention layers, or ``groups`` does not divide ``heads``.
    """
    if not any(map(_SHARED.search, state)):
        raise ValueError("these weights have no key and value heads to pool")
    return {name: pool_heads(t, heads, groups) if _SHARED.search(name) else t for name, t in state.items()}
