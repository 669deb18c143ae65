"""Classifier-free guidance. Dimensions: R rows, V vocabulary."""

from __future__ import annotations

from torch import Tensor


def guide(conditioned: Tensor, unconditioned: Tensor, strength: float, rescale: float = 0.0) -> Tensor:
    """``c + s (c - u)`` (2207.12598), the identity at s = 0.

    Args:
        conditioned, unconditioned: log-probabilities float [..., V] with and without the condition.
        strength: s; the guidance scale of other papers is s + 1.
        rescale: share of the result whose standard deviation over V is brought back to that of ``conditioned``
            (2305.08891, section 3.4): what is drawn follows the condition without being sharper. 0 is plain guidance.
    """
    if strength == 0.0:
        return conditioned
    guided = conditioned + strength * (conditioned - unconditioned)
    if rescale == 0.0:
        return guided
    spread = conditioned.std(-1, keepdim=True) / guided.std(-1, keepdim=True).clamp(min=1e-9)
    return guided * (rescale * spread + (1.0 - rescale))
