"""How much memory a process has held, and giving back what it no longer holds."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def peak_mb(device: torch.device | str) -> float:
    """Megabytes (2^20 bytes) that this process has held at most: of a GPU's memory where it works on one."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere


def give_back() -> None:
    """Let the system have memory that was freed and that the C library keeps for later; only glibc can be asked to."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
