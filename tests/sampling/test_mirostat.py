"""Mirostat: the mean surprise comes to the target, whatever the distribution; each row learns for itself."""

from __future__ import annotations

import math

import pytest
import torch

from tests.sampling.logits import make_logits, make_noise
from vall_e.sampling import mirostat
from vall_e.sampling.draw import draw

V, ROWS, STEPS = 300, 16, 300


def _zipf(exponent: float, seed: int) -> torch.Tensor:
    """Logits [R, V] by Zipf's law, the ranks shuffled per row."""
    ranks = torch.stack(
        [torch.randperm(V, generator=torch.Generator().manual_seed(seed * 99 + r)) for r in range(ROWS)]
    )
    return -exponent * (ranks + 1).log()


def _surprises(version: int, tau: float, exponent: float, wobble: float = 0.0) -> torch.Tensor:
    """Bits [STEPS, R]; the distribution changes from step to step."""
    bound, out = mirostat.begin(ROWS, tau, torch.device("cpu")), []
    for step in range(STEPS):
        logits = _zipf(exponent, step % 7) * (1 + wobble * math.sin(step / 5))
        token = draw(mirostat.cut(logits, bound, version), make_noise(ROWS, V, step))
        out.append(-logits.log_softmax(-1).gather(1, token[:, None])[:, 0] / math.log(2))
        bound = mirostat.learn(logits, token, bound, tau, 0.1)
    return torch.stack(out)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [2.5, 4.0])
@pytest.mark.parametrize("exponent, wobble", [(1.2, 0.0), (1.3, 0.2)])
def test_the_mean_surprise_comes_to_the_target(version: int, tau: float, exponent: float, wobble: float) -> None:
    found = _surprises(version, tau, exponent, wobble)[STEPS // 4 :]
    assert float(found.mean()) == pytest.approx(tau, rel=0.05)
    assert found.mean(0).sub(tau).abs().max() < 0.2 * tau  # in every row


def test_version_2_drops_what_surprises_more_than_the_bound() -> None:
    logits, bound = make_logits(), torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0, 1e9])
    surprise = -logits.log_softmax(-1) / math.log(2)
    want = (surprise <= bound[:, None]) | (surprise == surprise.amin(-1, keepdim=True))
    assert torch.equal(torch.isfinite(mirostat.cut(logits, bound, 2)), want)
    assert want[0].sum() == 1 and want[5].all()


def test_version_1_finds_the_number_of_tokens_of_zipfs_law() -> None:
    """For p(r) = r^-s / sum, the paper's k = (e 2^mu / (1 - V^-e))^(1/s) with e = s - 1."""
    for exponent, bits in ((0.8, 4.0), (1.5, 3.0), (1.0, 5.0)):
        logits = -exponent * torch.arange(1, V + 1).log()[None]
        kept = int(torch.isfinite(mirostat.cut(logits, torch.tensor([bits]), 1)).sum())
        e = exponent - 1 or 1e-6
        assert kept == pytest.approx((e * 2**bits / (1 - V**-e)) ** (1 / exponent), abs=1)


@pytest.mark.parametrize("version", [1, 2])
def test_something_is_always_left(version: int) -> None:
    one = torch.full((1, V), -torch.inf).index_fill(1, torch.tensor([4]), 0.0)
    few = torch.full((1, V), -torch.inf).index_fill(1, torch.tensor([4, 9]), 0.0)
    for logits in (torch.zeros(1, V), one, few, make_logits(1, V) * 50):
        for bound in (-50.0, 0.0, 3.0, 500.0):
            found = mirostat.cut(logits, torch.tensor([bound]), version)
            assert not found.isnan().any()
            assert found.max() == logits.max() and not torch.isfinite(found)[logits == -torch.inf].any()
