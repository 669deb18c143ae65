"""The loops of ``vall_e.nn.decode_attention``, compiled by numba.

Imported only where they run: importing numba takes a third of a second.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from numba import prange

# sums may be taken in any order, which is what lets them be vectorised; NaN and infinity stay what they are
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
SIGNATURE = "void(f4[:,:,::1], f4[:,:,:,::1], f4[:,:,:,::1], i8[::1], f4[:,:,::1])"


def compiled() -> Callable[..., None] | None:
    """``attend`` as machine code, compiled once a machine (three seconds; then numba finds it in its cache).

    None without numba's OpenMP layer. That one runs on the threads that torch has; another layer's threads would fight
    with those for the CPU, and numba's own ends the process when two threads call it at once.
    """
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError:
        return None
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "omp"
    use_threads(1)  # starts the layer, unless another library has started one
    if numba.threading_layer() != "omp":
        return None
    settings = {"parallel": True, "fastmath": FASTMATH, "error_model": "numpy"}
    try:
        return numba.njit(SIGNATURE, cache=True, **settings)(attend)
    except RuntimeError:  # no folder that could hold the cache
        return numba.njit(SIGNATURE, **settings)(attend)


def use_threads(count: int) -> None:
    """Let the calling thread run loops on ``count`` threads, or on as many as there are CPUs."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, spans: np.ndarray, out: np.ndarray) -> None:
    """See ``attend_one``: ``q``, ``out`` [B, H, d], ``keys``, ``values`` [C, G, S, d], ``spans`` [B]."""
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
