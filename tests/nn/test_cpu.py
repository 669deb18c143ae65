"""Attention of one position a row and products of a few rows, held against torch's."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from tests.tiny import model_config
from vall_e.backbones.base import build_backbone
from vall_e.nn.attention import attend_grouped
from vall_e.nn.cache import KVCache
from vall_e.nn.cpu import FEW, StepLinear, attend_one, attends, multiplies, multiply, use_step_linear


def random(rows: int, heads: int, groups: int, size: int = 40, dim: int = 24) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(rows, heads + 2, 1, dim, generator=generator)[:, :heads]  # a view, as of a fused product
    keys, values = (torch.randn(rows + 1, groups, size + 5, dim, generator=generator)[:rows, :, :size] for _ in "kv")
    return q, keys, values


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("spans", [[1, 40, 17], [9]], ids=["ragged", "alone"])
def test_equals_torch(heads: int, groups: int, spans: list[int]) -> None:
    q, keys, values = random(len(spans), heads, groups)
    spans = torch.tensor(spans)
    mask = (torch.arange(40) < spans[:, None])[:, None, None]
    expected = attend_grouped(q, keys, values, mask)
    torch.testing.assert_close(attend_one(q, keys, values, spans), expected)


def test_large_scores_do_not_overflow() -> None:
    q, keys, values = random(2, 4, 2)
    spans = torch.tensor([40, 3])
    mask = (torch.arange(40) < spans[:, None])[:, None, None]
    q = q * 1e3
    torch.testing.assert_close(attend_one(q, keys, values, spans), attend_grouped(q, keys, values, mask))


def test_exponentials_are_those_of_numpy_and_end_nowhere_in_infinity() -> None:
    from vall_e.nn import cpu_loops

    @numba.njit
    def exponentials(x: np.ndarray) -> np.ndarray:
        return np.array([cpu_loops._exp(each) for each in x])

    x = np.linspace(-87, 88, 20_001, dtype=np.float32)
    np.testing.assert_allclose(exponentials(x), np.exp(x.astype(np.float64)), rtol=3e-7)
    ends = exponentials(np.array([-np.inf, -1e9, 1e9, np.nan], dtype=np.float32))
    assert (ends[:2] < 2e-38).all() and np.isfinite(ends[2]) and np.isnan(ends[3])


def test_what_lies_behind_a_row_is_not_read_and_nan_is_not_hidden() -> None:
    q, keys, values = random(2, 4, 2)
    spans = torch.tensor([5, 40])
    expected = attend_one(q, keys, values, spans)
    keys[0, :, 5:], values[0, :, 5:] = torch.nan, torch.nan
    assert attend_one(q, keys, values, spans).equal(expected)
    keys[0, 0, 4] = torch.nan
    out = attend_one(q, keys, values, spans)
    assert out[0, :2].isnan().all() and out[0, 2:].equal(expected[0, 2:]) and out[1].equal(expected[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_gets_the_same_bits_alone_and_in_a_batch(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    q, keys, values = random(3, 4, 2)
    together = attend_one(q, keys, values, torch.tensor([7, 40, 22]))
    assert attend_one(q[2:], keys[2:], values[2:], torch.tensor([22])).equal(together[2:])


def test_it_is_for_float32_on_a_cpu_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.zeros(2, 2, 4, 8)
    assert not attends(keys, 2)  # gradients
    with torch.inference_mode():
        assert attends(keys, 2)
        assert not attends(keys.bfloat16(), 2) and not attends(keys.to("meta"), 2)
        monkeypatch.setattr("torch.get_num_threads", lambda: 5)
        assert not attends(keys, 2)  # four pieces of work
        monkeypatch.setattr("torch.get_num_threads", lambda: 1)
        monkeypatch.setattr("vall_e.nn.cpu._loops", lambda: None)
        assert not attends(keys, 2)


@torch.inference_mode()
def test_a_cache_says_what_each_row_has_in_a_step_only() -> None:
    cache = KVCache(1, 2, 2, 8, 4, torch.float32, torch.device("cpu"))
    cache.begin(3, torch.tensor([3, 1]))
    assert cache.spans is None  # a prompt
    cache.end()
    cache.begin(1)
    assert cache.spans.tolist() == [4, 2]
    static = KVCache(1, 2, 2, 8, 4, torch.float32, torch.device("cpu"), static=True)
    static.begin(1)
    assert static.spans is None


def test_the_loops_leave_the_number_of_torchs_threads_alone() -> None:
    """Sums depend on it: the first speech of a process would differ from those that follow."""
    code = (
        "import torch; from vall_e.nn.cpu import attend_one; x = torch.ones(1, 2, 4, 8); torch.set_num_threads(1);"
        "assert torch.get_num_threads() == 1; attend_one(x[:, :, :1], x, x, torch.tensor([3]));"
        "assert torch.get_num_threads() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_processes_that_compile_it_at_once_all_get_it(tmp_path: Path) -> None:
    """On an empty cache; half-written or mixed files there would end later processes."""
    code = (
        "import torch; from vall_e.nn.cpu import attend_one; x = torch.ones(1, 2, 4, 8);"
        "assert attend_one(x[:, :, :1], x, x, torch.tensor([3])).eq(1).all()"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(4)]
        assert [process.wait(120) for process in processes] == [0] * 4
    assert list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("onto", [False, True])
def test_products_equal_torchs(rows: int, onto: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, 2 * 37, generator=generator)[:, ::2], torch.randn(19, 37, generator=generator)
    base = torch.randn(rows, 19, generator=generator) if onto else None
    before = None if base is None else base.clone()
    expected = x @ weight.t() + (0 if base is None else base)
    torch.testing.assert_close(multiply(x, weight, base), expected)
    assert base is None or base.equal(before)  # what it is added to stays


@pytest.mark.parametrize("bias", [False, True])
def test_a_step_linear_is_the_linear_that_it_was(bias: bool) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(37, 19, bias=bias))
    x, many = torch.randn(2, 3, 37), torch.randn(FEW + 1, 37)
    expected = layers(x), layers(many)
    use_step_linear(layers)
    assert type(layers[0]) is StepLinear
    torch.testing.assert_close((layers(x), layers(many)), expected)  # with gradients: torch's
    layers.requires_grad_(False)
    with torch.inference_mode():
        torch.testing.assert_close((layers(x), layers(many)), tuple(e.detach() for e in expected))


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_under_autocast_steps_are_torchs(fused: bool) -> None:
    backbone = build_backbone(model_config()).eval()
    if fused:
        backbone.fuse()
    cache = backbone.new_cache(2, 4, torch.float32, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        cache.begin(1)
        out = backbone(torch.randn(2, 1, backbone.config.dim), torch.zeros(2, 1, dtype=torch.int64), None, cache)
    assert cache.spans is None and out.isfinite().all()


def test_products_are_for_a_few_rows_of_float32_without_gradients() -> None:
    x, weight = torch.ones(FEW, 4), torch.ones(3, 4)
    assert not multiplies(x, weight)
    with torch.inference_mode():
        assert multiplies(x, weight)
        assert not multiplies(torch.ones(FEW + 1, 4), weight)
        assert not multiplies(x.bfloat16(), weight) and not multiplies(x, weight.bfloat16())
