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


class Chain:
    def __init__(self, params, rows, vocabulary, device, stop):
        self.p = params
        window = getattr(params, "repetition_window", 1)
        self.penalty = getattr(params, "repetition_penalty", 1.0)
        self.history = torch.full((rows, window), -1, dtype=torch.int64, device=device)

    def draw(self, logits, noise, attention=None):
        p = self.p
        if p.temperature > 0 and not p.top_k and p.top_p >= 1 and self.penalty == 1:
            return torch.add(logits, noise.log(), alpha=-p.temperature).argmax(-1)
        return sample(
            logits,
            noise,
            temperature=p.temperature,
            k=p.top_k,
            p=p.top_p,
            penalty=self.penalty,
            history=self.history if self.penalty != 1 else None,
        )

    def observe(self, tokens):
        self.history = torch.cat((self.history[:, 1:], tokens[:, None]), dim=1)

    def select(self, rows):
        self.history = self.history[rows]

    def extend(self, other):
        self.history = torch.cat((self.history, other.history))
