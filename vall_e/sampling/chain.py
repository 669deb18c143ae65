"""From logits to a token: pure functions, batched, nothing written in place.

Order: repetition penalty, temperature, top-k, top-p, draw. Neutral values are the identity.
Dimensions: R rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def repetition_penalty(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Make tokens of the past less likely, once each (CTRL, 1909.05858, section 4.1).

    Args:
        logits: float [R, V].
        history: int64 [R, W] of past tokens; negative entries are empty.
        penalty: 1 is the identity; above 1 positive logits are divided and negative ones multiplied by it.
    """
    if penalty == 1.0 or history.shape[1] == 0:
        return logits
    seen = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, torch.where(history < 0, logits.shape[1], history), True)
    return torch.where(seen[:, :-1], torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest of each row [R, V], -inf elsewhere; 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    bound = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < bound, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set whose probability reaches p (nucleus sampling, 1904.09751); 1 keeps all."""
    if p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(-1)
    drop = probability.cumsum(-1) - probability >= p
    return torch.full_like(logits, -torch.inf).scatter(-1, order, ordered.masked_fill(drop, -torch.inf))


def guide(conditioned: Tensor, unconditioned: Tensor, strength: float) -> Tensor:
    """Classifier-free guidance on log-probabilities: ``c + s (c - u)`` (2207.12598); 0 is the identity."""
    return conditioned + strength * (conditioned - unconditioned)


def warp(logits: Tensor, *, temperature: float, k: int = 0, p: float = 1.0) -> Tensor:
    """Logits [R, V] of what is drawn from, -inf where nothing is; at temperature 0 only the greatest is left."""
    if temperature <= 0:
        return torch.full_like(logits, -torch.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    return top_p(top_k(logits / temperature, k), p)


def draw(logits: Tensor, noise: Tensor | None) -> Tensor:
    """A token int64 [R] for each row of logits [R, V].

    Args:
        noise: exponential(1) noise [R, V]: ``argmax(p / noise)`` is a sample of p (the Gumbel trick). Coming from
            outside, it makes a row's draws its own, whatever batch it is in. None is greedy.
    """
    if noise is None:
        return logits.argmax(-1)
    return (logits - noise.log()).argmax(-1)


def sample(
    logits: Tensor,
    noise: Tensor,
    *,
    temperature: float,
    k: int = 0,
    p: float = 1.0,
    penalty: float = 1.0,
    history: Tensor | None = None,
) -> Tensor:
    """The whole chain: a token int64 [R] for logits [R, V]; temperature 0 is greedy."""
    if history is not None:
        logits = repetition_penalty(logits, history, penalty)
    return draw(warp(logits, temperature=temperature, k=k, p=p), noise if temperature > 0 else None)


class RowNoise:
    """Exponential noise with a generator per row, drawn in chunks of steps.

    Args:
        seeds: one per row.
        shape: of one step's noise for one row.
        chunk: steps drawn at once.
    """

    def __init__(self, seeds: list[int], shape: tuple[int, ...], device: torch.device, chunk: int = 32) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device, self.chunk = shape, device, chunk
        self._block, self._at = torch.empty(0), chunk

    def next(self) -> Tensor:
        """Noise of the next step, float [R, *shape]."""
        if self._at == self.chunk:
            rows = [torch.empty(self.chunk, *self.shape).exponential_(generator=g) for g in self.generators]
            self._block, self._at = torch.stack(rows).clamp_(min=1e-20).to(self.device), 0
        self._at += 1
        return self._block[:, self._at - 1]

    def select(self, rows: Tensor) -> None:
        """Go on with the rows ``rows`` int64 only."""
        index = rows.tolist()
        self.generators = [self.generators[i] for i in index]
        self._block = self._block[rows.to(self._block.device)] if self._block.numel() else self._block
