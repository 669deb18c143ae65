"""The chain: its order, its cheap path, what its rows remember, and that they never mix."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.sampling.logits import make_logits, make_noise
from vall_e.decoding import SamplingParams
from vall_e.sampling import filters, mirostat, penalties
from vall_e.sampling.chain import Chain, sample, warp
from vall_e.sampling.draw import draw
from vall_e.sampling.entropix import entropix
from vall_e.sampling.noise import RowNoise

R, V, STOP = 6, 20, 19
CPU = torch.device("cpu")
SETTINGS = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "dynamic": {"temperature": 1.5, "min_temperature": 0.3},
    "filters": {"top_k": 9, "top_p": 0.95, "min_p": 0.01, "top_n_sigma": 2.0, "banned": (2, 3)},
    "penalties": {
        "repetition_penalty": 1.3, "repetition_decay": 0.1, "repetition_each": True, "repetition_window": 8,
        "length_penalty": 0.1, "dry_multiplier": 1.0,
    },
    "greedy penalties": {"temperature": 0.0, "repetition_penalty": 1.3, "dry_multiplier": 1.0},
    "mirostat 1": {"mirostat": 1, "mirostat_tau": 2.0, "repetition_penalty": 1.1},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 2.0},
    "entropix": {"entropix": True, "entropix_entropy": 1.5, "entropix_varentropy": 1.0, "banned": (1,)},
}  # fmt: skip
everything = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


def _chain(settings: dict, rows: int = R) -> Chain:
    return Chain(SamplingParams(**settings), rows, V, CPU, STOP)


def test_penalties_come_before_temperature_and_temperature_before_filters() -> None:
    chain = _chain(SETTINGS["penalties"] | {"temperature": 0.6, "top_p": 0.7, "min_p": 0.02})
    history = torch.full((R, 8), -1)
    for step in range(12):
        logits = make_logits(seed=step)
        want = penalties.repetition_penalty(logits, history, 1.3, 0.1, True)
        want = penalties.length_penalty(penalties.dry(want, history, 1.0), torch.full((R,), step), STOP, 0.1)
        want = filters.min_p(filters.top_p(want / 0.6, 0.7), 0.02)
        torch.testing.assert_close(chain.warp(logits), want)
        token = chain.draw(logits, make_noise(R, V, step))
        assert torch.equal(token, draw(want, make_noise(R, V, step)))
        chain.observe(token)
        history = torch.cat((history[:, 1:], token[:, None]), dim=1)


def test_mirostat_and_entropix_replace_the_filters() -> None:
    logits, noise = make_logits(), make_noise(R, V)
    chain = _chain(SETTINGS["mirostat 2"])
    cut = mirostat.cut(logits / 0.8, torch.full((R,), 4.0), 2)
    assert torch.equal(chain.warp(logits), cut)
    token = chain.draw(logits, noise)
    assert torch.equal(token, draw(cut, noise))
    torch.testing.assert_close(chain.bound, mirostat.learn(logits / 0.8, token, torch.full((R,), 4.0), 2.0, 0.1))
    attention = torch.rand(R, 2, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = _chain(SETTINGS["entropix"]).warp(logits, attention)
    assert torch.equal(found, entropix(penalties.ban(logits, (1,)), 0.8, 1.5, 1.0, attention))


@everything
def test_only_the_repetition_penalty_asks_where_the_zero_of_the_logits_is(settings: dict) -> None:
    """And not where they are less their mean."""
    chains = [_chain(settings) for _ in range(2)]
    for step in range(12):
        logits, noise = make_logits(seed=step), make_noise(R, V, step)
        logits[:, step] = -torch.inf
        both = [logits, logits + 9.0]
        if "repetition_penalty" in settings:
            both = [penalties.centred(one) for one in both]
        mine, other = (chain.draw(one, noise) for chain, one in zip(chains, both, strict=True))
        assert torch.equal(mine, other)
        for chain in chains:
            chain.observe(mine)


def test_the_cheap_path_draws_what_the_whole_chain_draws() -> None:
    logits, noise = make_logits(500), make_noise(500, V)
    for temperature in (0.0, 0.8, 1.0):
        chain = _chain({"temperature": temperature}, 500)
        assert torch.equal(chain.draw(logits, noise), draw(chain.warp(logits), noise if temperature else None))
        assert torch.equal(chain.draw(logits, noise), sample(logits, noise, temperature=temperature))
        assert chain.history.shape[1] == 0


def test_the_cheap_path_is_two_operations() -> None:
    chain, logits, noise = _chain({}), make_logits(), make_noise(R, V)
    tokens, called = torch.zeros(R, dtype=torch.int64), []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), settings=None):
            called.append(function.overloadpacket.__name__)
            return function(*arguments, **(settings or {}))

    with Calls():
        chain.draw(logits, noise)
        chain.observe(tokens)
    assert called == ["add", "argmax"]


@everything
def test_looking_changes_nothing_and_something_can_always_be_drawn(settings: dict) -> None:
    chain, noise = _chain(settings), RowNoise(list(range(R)), (V,), CPU)
    for step in range(20):
        logits = make_logits(seed=step) * (10.0 if step % 3 == 0 else 1.0)
        before, draws = logits.clone(), noise.next()
        kept = draws.clone()
        warped = chain.warp(logits)
        assert torch.equal(warped, chain.warp(logits))
        token = chain.draw(logits, draws)
        assert torch.isfinite(warped.gather(1, token[:, None])).all() and not warped.isnan().any()
        assert torch.equal(logits, before) and torch.equal(draws, kept)
        chain.observe(token)
    if settings.get("banned"):
        assert not set(chain.params.banned) & set(torch.isfinite(chain.warp(logits)).nonzero()[:, 1].tolist())


@everything
def test_a_row_draws_the_same_alone_in_a_batch_and_joining_late(settings: dict) -> None:
    steps = 16
    streams = [make_logits(steps, V, seed) for seed in range(4)]

    def alone(seed: int) -> list[int]:
        chain, noise, out = _chain(settings, 1), RowNoise([seed], (V,), CPU, 4), []
        for step in range(steps):
            token = chain.draw(streams[seed][step : step + 1], noise.next())
            chain.observe(token)
            out.append(int(token))
        return out

    def batch(rows: list[int]) -> tuple[Chain, RowNoise]:
        return _chain(settings, len(rows)), RowNoise(rows, (V,), CPU, 4)

    live, out, at = [0, 1, 2], {seed: [] for seed in range(4)}, dict.fromkeys(range(4), 0)
    chain, noise = batch(live)
    for step in range(steps + 5):
        if step == 5:  # row 1 leaves, row 3 joins
            chain.select(torch.tensor([0, 2]))
            noise.select([0, 2])
            late = batch([3])
            chain.extend(late[0])
            noise.extend(late[1])
            live = [0, 2, 3]
        logits = torch.stack([streams[seed][min(at[seed], steps - 1)] for seed in live])
        tokens = chain.draw(logits, noise.next())
        chain.observe(tokens)
        for seed, token in zip(live, tokens.tolist(), strict=True):
            out[seed].append(token)
            at[seed] += 1
    assert out[1] == alone(1)[:5]
    for seed in (0, 2, 3):
        assert out[seed][:steps] == alone(seed)


def test_a_row_that_is_selected_twice_goes_on_from_the_same_past() -> None:
    chain = _chain(SETTINGS["penalties"])
    for step in range(5):
        chain.observe(make_logits(seed=step).argmax(-1))
    logits = make_logits(1, seed=9)
    want = chain.warp(logits.expand(R, V))[[4, 4, 1]]
    chain.select(torch.tensor([4, 4, 1]))
    assert torch.equal(chain.warp(logits.expand(3, V)), want)


def test_the_length_penalty_counts_what_each_row_has_drawn() -> None:
    chain, late = _chain({"length_penalty": 0.5}, 1), _chain({"length_penalty": 0.5}, 1)
    for _ in range(4):
        chain.observe(torch.zeros(1, dtype=torch.int64))
    chain.extend(late)
    logits = torch.zeros(2, V)
    assert (chain.warp(logits)[:, STOP] * 0.8).tolist() == pytest.approx([-2.0, 0.0])
    assert torch.equal(Chain(chain.params, 2, V, CPU, None).warp(logits), logits)


def test_all_tokens_banned_is_refused_at_once_and_the_stop_is_nothing_to_draw() -> None:
    for banned, stop, count in (
        (range(V), None, 20),
        (range(V), STOP, 19),
        (range(STOP), STOP, 19),
        (range(1, V), 0, 19),
    ):
        with pytest.raises(ValueError, match=f"all {count} codes"):
            Chain(SamplingParams(banned=tuple(banned)), R, V, CPU, stop)
    _chain({"banned": tuple(range(1, V))})


def test_settings_are_the_arguments_of_warp() -> None:
    params = SamplingParams(**SETTINGS["filters"] | {"temperature": 0.7})
    logits = make_logits()
    assert torch.equal(warp(logits, **params.filters), Chain(params, R, V, CPU, STOP).warp(logits))


@pytest.mark.parametrize("settings", [
    {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_n_sigma": 1.0}, {"mirostat": 2}, {"banned": (1,)}, {},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("temperature", [1e-38, 1e-45, 1e-300])
def test_however_cold_the_likeliest_is_drawn(settings: dict, temperature: float) -> None:
    logits = make_logits() - 50  # all below 0
    logits[:, 1] = -60.0
    drawn = _chain({"temperature": temperature, **settings}).draw(logits, make_noise(R, V))
    assert torch.equal(drawn, logits.argmax(-1))
