"""Samplers in their order: penalties, temperature, filters, draw; mirostat and entropix choose what is drawn from.

Settings have the attributes of ``vall_e.decoding.SamplingParams``. Dimensions: R rows, V vocabulary, W tokens that
are looked back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vall_e.sampling import filters, mirostat
from vall_e.sampling.draw import draw
from vall_e.sampling.entropix import entropix
from vall_e.sampling.penalties import ban, dry, length_penalty, repetition_penalty


def warp(
    logits: Tensor,
    *,
    temperature: float,
    min_temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    top_n_sigma: float = 0.0,
    banned: Sequence[int] = (),
) -> Tensor:
    """Logits [R, V] of what is drawn from, -inf where nothing is; at temperature 0 only the greatest is left."""
    logits = ban(logits, banned)
    if temperature <= 0:
        return torch.full_like(logits, -torch.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    if min_temperature is not None:
        logits = filters.scale(logits, filters.dynamic_temperature(logits, min_temperature, temperature))
    elif temperature != 1.0:
        logits = filters.scale(logits, temperature)
    logits = filters.top_k(filters.top_n_sigma(logits, top_n_sigma), top_k)
    return filters.min_p(filters.top_p(logits, top_p), min_p)


def sample(logits: Tensor, noise: Tensor, *, temperature: float, **settings: Any) -> Tensor:
    """A token int64 [R] for logits [R, V] that do not depend on what was drawn before.

    Args:
        noise: as in ``draw``; unused at temperature 0, which is greedy.
        settings: the other arguments of ``warp``.
    """
    warped = warp(logits, temperature=temperature, **settings)
    return draw(warped, noise if temperature > 0 else None)


class Chain:
    """The samplers of R rows, with what they must remember of each.

    Args:
        params: the settings.
        rows: R.
        vocabulary: V.
        stop: the token that ends a row, whose chance the length penalty changes; None if there is none.
        past: tokens int64 [P] that each row goes on from, which repetition and DRY penalties look back at.

    Raises:
        ValueError: all tokens are banned, or all but ``stop``.
    """

    def __init__(
        self,
        params: Any,
        rows: int,
        vocabulary: int,
        device: torch.device,
        stop: int | None,
        past: Sequence[Tensor] = (),
    ) -> None:
        self.params, self.stop = params, stop
        codes = set(range(vocabulary)) - {stop}
        if codes <= set(params.banned):
            raise ValueError(f"banned: all {len(codes)} codes of the vocabulary are banned, leave some to draw from")
        looks_back = params.repetition_penalty != 1.0 or params.dry_multiplier > 0
        window = params.repetition_window if looks_back else 0
        self.history = torch.full((rows, window), -1, dtype=torch.int64, device=device)
        for row, tokens in enumerate(past):
            newest = tokens[max(0, len(tokens) - window) :]
            self.history[row, window - len(newest) :] = newest.to(device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.bound = mirostat.begin(rows, params.mirostat_tau, device)
        self._counts = params.length_penalty != 0.0 and stop is not None
        filtered = params.top_k or params.top_p < 1 or params.min_p or params.top_n_sigma or params.banned
        chosen = params.mirostat or params.entropix or params.min_temperature is not None
        self._plain = not (looks_back or self._counts or filtered or chosen)

    def warp(self, logits: Tensor, attention: Tensor | None = None) -> Tensor:
        """Logits [R, V] of what is drawn from, -inf where nothing is; nothing is remembered.

        Args:
            logits: float [R, V].
            attention: see ``entropix``.
        """
        scaled = self._scaled(logits, attention)
        return mirostat.cut(scaled, self.bound, self.params.mirostat) if self.params.mirostat else scaled

    def draw(self, logits: Tensor, noise: Tensor, attention: Tensor | None = None) -> Tensor:
        """A token int64 [R] for logits [R, V]; mirostat learns from it, ``observe`` has the rest remember it.

        Args:
            noise: as in ``draw``; unused at temperature 0, which is greedy.
            attention: see ``entropix``.
        """
        params = self.params
        noise = noise if params.temperature > 0 else None
        if self._plain:
            return draw(logits, noise, params.temperature)
        scaled = self._scaled(logits, attention)
        if not params.mirostat:
            return draw(scaled, noise)
        token = draw(mirostat.cut(scaled, self.bound, params.mirostat), noise)
        self.bound = mirostat.learn(scaled, token, self.bound, params.mirostat_tau, params.mirostat_eta)
        return token

    def observe(self, tokens: Tensor) -> None:
        """Remember the tokens int64 [R] that the rows went on with."""
        if self.history.shape[1]:
            self.history = torch.cat((self.history[:, 1:], tokens[:, None]), dim=1)
        if self._counts:
            self.lengths = self.lengths + 1

    def select(self, rows: Tensor) -> None:
        """Go on with the rows ``rows`` int64, in this order; one may be there several times."""
        self.history, self.lengths, self.bound = self.history[rows], self.lengths[rows], self.bound[rows]

    def extend(self, other: Chain) -> None:
        """Take in the rows of ``other``, of the same settings, behind the own ones."""
        self.history = torch.cat((self.history, other.history))
        self.lengths = torch.cat((self.lengths, other.lengths))
        self.bound = torch.cat((self.bound, other.bound))

    def _scaled(self, logits: Tensor, attention: Tensor | None) -> Tensor:
        """Penalties, temperature and filters, or what entropix has in place of the last two."""
        params = self.params
        logits = repetition_penalty(
            logits, self.history, params.repetition_penalty, params.repetition_decay, params.repetition_each
        )
        logits = dry(logits, self.history, params.dry_multiplier, params.dry_base, params.dry_allowed)
        if self._counts:
            logits = length_penalty(logits, self.lengths, self.stop, params.length_penalty)
        if params.entropix:
            bounds = (params.entropix_entropy, params.entropix_varentropy)
            return entropix(ban(logits, params.banned), params.temperature, *bounds, attention)
        return warp(logits, **params.filters)
