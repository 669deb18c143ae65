"""The loops of ``vall_e.nn.cpu``, compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numba import prange

# sums may be taken in any order, which is what lets them be vectorised; NaN and infinity stay what they are
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
SETTINGS = {"parallel": True, "fastmath": FASTMATH, "error_model": "numpy"}

attend: Callable[..., None]
multiply: Callable[..., None]


def prepare() -> bool:
    """Compile ``attend`` and ``multiply``, once a machine (seconds; then numba finds them in its cache).

    False without numba's OpenMP layer. That one runs on the threads that torch has; another layer's threads would fight
    with those for the CPU, and numba's own ends the process when two threads call it at once.
    """
    global attend, multiply
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError:
        return False
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "omp"
    # Starts the layer, unless another library has. The thread that does so computes on all CPUs from then on, torch's
    # sums with it, whatever it was told before: so not the thread that called.
    with ThreadPoolExecutor(1) as starter:
        starter.submit(use_threads, 1).result()
    if numba.threading_layer() != "omp":
        return False
    attend = _compiled("void(f4[:,:,::1], f4[:,:,:,::1], f4[:,:,:,::1], i8[::1], f4[:,:,::1])", _attend)
    multiply = _compiled("void(f4[:,::1], f4[:,::1], f4[:,::1])", _multiply)
    return True


def use_threads(count: int) -> None:
    """Let the calling thread run loops on ``count`` threads, or on as many as there are CPUs."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def _compiled(signature: str, loops: Callable[..., None]) -> Callable[..., None]:
    try:
        return numba.njit(signature, cache=True, **SETTINGS)(loops)
    except RuntimeError:  # no folder that could hold the cache
        return numba.njit(signature, **SETTINGS)(loops)


def _attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, spans: np.ndarray, out: np.ndarray) -> None:
    """See ``attend_one``: ``q``, ``out`` [B, H, d], ``keys``, ``values`` [B, G, S, d], ``spans`` [B]."""
    rows, heads, dim = q.shape
    groups = keys.shape[1]
    share = heads // groups
    scale = np.float32(1 / np.sqrt(dim))
    for place in prange(rows * groups):
        row, group, first, span = place // groups, place % groups, place % groups * share, spans[place // groups]
        weights = np.empty((share, span), np.float32)
        for slot in range(span):
            for head in range(share):
                score = np.float32(0)
                for at in range(dim):
                    score += keys[row, group, slot, at] * q[row, first + head, at]
                weights[head, slot] = score * scale
        for head in range(share):
            top = weights[head].max()
            total = np.float32(0)
            for slot in range(span):
                weights[head, slot] = np.exp(weights[head, slot] - top)
                total += weights[head, slot]
            weights[head] /= total
            out[row, first + head] = 0
        for slot in range(span):
            for head in range(share):
                weight = weights[head, slot]
                for at in range(dim):
                    out[row, first + head, at] += weight * values[row, group, slot, at]


def _multiply(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """``out`` [M, O] += ``x`` [M, I] times ``weight`` [O, I] transposed; four rows share what is read of a weight."""
    rows, inputs = x.shape
    fours = rows // 4 * 4
    for o in prange(len(weight)):
        for row in range(0, fours, 4):
            a = b = c = d = np.float32(0)
            for i in range(inputs):
                w = weight[o, i]
                a += w * x[row, i]
                b += w * x[row + 1, i]
                c += w * x[row + 2, i]
                d += w * x[row + 3, i]
            out[row, o] += a
            out[row + 1, o] += b
            out[row + 2, o] += c
            out[row + 3, o] += d
        for row in range(fours, rows):
            a = np.float32(0)
            for i in range(inputs):
                a += weight[o, i] * x[row, i]
            out[row, o] += a
