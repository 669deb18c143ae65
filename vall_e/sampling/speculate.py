"""Speculative sampling (2211.17192, section 2.3): a draft's token is kept or replaced so that the result is
distributed as the target is. Dimensions: R rows, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from vall_e.sampling.draw import draw


def verify(drafted: Tensor, draft: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Keep a drafted token with probability min(1, p / q), or draw from what p has more than q.

    Args:
        drafted: int64 [R], drawn from ``draft``.
        draft, target: logits [R, V] of q and p, -inf where a token cannot be.
        noise: exponential(1) noise [R, V + 1]: V for a replacement, the last for the decision.

    Returns:
        tokens int64 [R] distributed as p, and bool [R], where the draft was kept.
    """
    p, q = target.softmax(-1), draft.softmax(-1)
    ratio = (p / q).gather(1, drafted[:, None])[:, 0]
    kept = (-noise[:, -1]).exp() < ratio
    more = (p - q).clamp(min=0)
    more = more.where(more.sum(-1, keepdim=True) > 0, p)  # p = q but for rounding
    return drafted.where(kept, draw(more.log(), noise[:, :-1])), kept
