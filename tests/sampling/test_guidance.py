"""Guidance: the identity at strength 0, the paper's rescaling elsewhere."""

from __future__ import annotations

import torch

from tests.sampling.logits import make_logits
from vall_e.sampling.guidance import guide


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    return make_logits(seed=0).log_softmax(-1), make_logits(seed=1).log_softmax(-1)


def test_strength_0_is_the_identity_whatever_the_rescale() -> None:
    conditioned, null = _pair()
    for rescale in (0.0, 0.7):
        assert torch.equal(guide(conditioned, null, 0.0, rescale), conditioned)


def test_guidance_goes_on_from_the_unconditioned_through_the_conditioned() -> None:
    conditioned, null = _pair()
    torch.testing.assert_close(guide(conditioned, null, 1.5), null + 2.5 * (conditioned - null))


def test_rescaling_is_that_of_2305_08891() -> None:
    conditioned, null = _pair()
    plain = guide(conditioned, null, 3.0)
    assert (plain.std(-1) > conditioned.std(-1)).all()
    torch.testing.assert_close(guide(conditioned, null, 3.0, 1.0).std(-1), conditioned.std(-1))
    whole = plain * (conditioned.std(-1) / plain.std(-1))[:, None]
    torch.testing.assert_close(guide(conditioned, null, 3.0, 0.7), 0.7 * whole + 0.3 * plain)
    assert torch.equal(guide(conditioned, null, 3.0, 0.7).argmax(-1), plain.argmax(-1))
