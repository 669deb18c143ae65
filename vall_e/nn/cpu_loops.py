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
step: Callable[..., None]


def prepare() -> bool:
    """Compile ``attend``, ``multiply`` and ``step``, once a machine (seconds; then numba finds them in its cache).

    False without numba's OpenMP layer. That one runs on the threads that torch has; another layer's threads would fight
    with those for the CPU, and numba's own ends the process when two threads call it at once.
    """
    global attend, multiply, step
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
    row, rows, buffer = "f4[::1]", "f4[:,::1]", "f4[:,:,:,::1]"
    attend = _compiled(f"void(f4[:,:,::1], {buffer}, {buffer}, i8[::1], f4[:,:,::1])", _attend)
    multiply = _compiled(f"void({rows}, {rows}, {rows})", _multiply)
    weights, angles = ", ".join([rows] * 4 + [row]), "f4[:,:,:,:], f4[:,:,:,:]"
    step = _compiled(f"void({rows}, {weights}, {angles}, {buffer}, {buffer}, i8[::1], {rows})", _step, parallel=False)
    return True


def use_threads(count: int) -> None:
    """Let the calling thread run loops on ``count`` threads, or on as many as there are CPUs."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def _compiled(signature: str, loops: Callable[..., None], **changes: bool) -> Callable[..., None]:
    settings = SETTINGS | changes
    try:
        return numba.njit(signature, cache=True, **settings)(loops)
    except RuntimeError:  # no folder that could hold the cache
        return numba.njit(signature, **settings)(loops)


@numba.njit(fastmath=FASTMATH, error_model="numpy", inline="always")
def _exp(x: np.float32) -> np.float32:
    """e to the ``x``, which is moved into -87 to 88, within 2e-7 of it: numba's own is not vectorised."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    whole = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    rest = (x - whole * np.float32(0.693359375)) + whole * np.float32(2.12194440e-4)  # ln 2 in two parts
    found = np.float32(1 / 720)
    found = found * rest + np.float32(1 / 120)
    found = found * rest + np.float32(1 / 24)
    found = found * rest + np.float32(1 / 6)
    found = found * rest + np.float32(0.5)
    found = found * rest + np.float32(1)
    found = found * rest + np.float32(1)
    return found * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


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
                weights[head, slot] = _exp(weights[head, slot] - top)
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


def _step(
    x: np.ndarray,
    qkv: np.ndarray,
    o: np.ndarray,
    gate_up: np.ndarray,
    down: np.ndarray,
    floors: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    spans: np.ndarray,
    out: np.ndarray,
) -> None:
    """See ``block_step``: ``x``, ``out`` [B, D], ``cos``, ``sin`` [B, 1, 1, d], ``keys``, ``values`` [B, G, S, d]."""
    rows, width = x.shape
    groups, dim = keys.shape[1], keys.shape[3]
    heads, inner = o.shape[1] // dim, down.shape[1]
    normed = np.empty((rows, width), np.float32)
    products = np.zeros((rows, len(qkv)), np.float32)
    queries = np.empty((rows, heads, dim), np.float32)
    attended = np.empty((rows, heads, dim), np.float32)
    gates = np.zeros((rows, 2 * inner), np.float32)
    gated = np.empty((rows, inner), np.float32)

    _normalise(x, floors[0], normed)
    multiply(normed, qkv, products)
    for row in range(rows):
        parts, slot = products[row].reshape(heads + 2 * groups, dim), spans[row] - 1
        for head in range(heads):
            _turn(parts[head], cos[row, 0, 0], sin[row, 0, 0], queries[row, head])
        for group in range(groups):
            _turn(parts[heads + group], cos[row, 0, 0], sin[row, 0, 0], keys[row, group, slot])
            values[row, group, slot] = parts[heads + groups + group]
    attend(queries, keys, values, spans, attended)
    out[:] = x
    multiply(attended.reshape(rows, heads * dim), o, out)

    _normalise(out, floors[1], normed)
    multiply(normed, gate_up, gates)
    for row in range(rows):
        for at in range(inner):
            gate = gates[row, at]
            gated[row, at] = gate / (np.float32(1) + _exp(-gate)) * gates[row, inner + at]
    multiply(gated, down, out)


@numba.njit(fastmath=FASTMATH, error_model="numpy")
def _normalise(x: np.ndarray, floor: np.float32, out: np.ndarray) -> None:
    """Each row of ``x`` over the Euclidean length of itself and ``floor``."""
    for row in range(len(x)):
        squares = floor * floor
        for at in range(x.shape[1]):
            squares += x[row, at] * x[row, at]
        scale = np.float32(1) / np.sqrt(squares)
        for at in range(x.shape[1]):
            out[row, at] = x[row, at] * scale


@numba.njit(fastmath=FASTMATH, error_model="numpy")
def _turn(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, out: np.ndarray) -> None:
    """``turn`` (``vall_e.nn.rope``) of one head [d]."""
    half = len(x) // 2
    for at in range(half):
        out[at] = x[at] * cos[at] + x[half + at] * sin[at]
        out[half + at] = x[half + at] * cos[half + at] + x[at] * sin[half + at]
