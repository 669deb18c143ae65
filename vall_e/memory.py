"""How much memory there is, how much a process has held, and giving back what it no longer holds."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
BOOT, COUNTERS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/vmstat")


def memory_mb(device: torch.device | str) -> float:
    """Megabytes (2^20 bytes) that a process may hold on ``device``: of the GPU, else of the machine or of the control
    group (container, batch job) where that has a limit."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory / 2**20
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20, limit_mb())


def limit_mb(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float:
    """Megabytes that the control groups of this process, version 1 or 2, let it have; infinite without a limit.

    Args:
        root: where they are mounted.
        own: the kernel's list of those of this process.
    """
    places = [(root, "/", "memory.max"), (root / "memory", "/", "memory.limit_in_bytes")]  # as a container sees its own
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            places.append((root, path, "memory.max"))
        elif "memory" in controllers.split(","):
            places.append((root / "memory", path, "memory.limit_in_bytes"))
    least = math.inf
    for mount, path, name in places:
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                least = min(least, int((mount / folder / name).read_text(encoding="utf-8")) / 2**20)
    return least


def oom_kills() -> tuple[str, int] | None:
    """An id of this run of the machine, and how many processes the system has ended in it for want of memory (Linux'
    OOM killer, containers included); None where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        counters = dict(line.split() for line in COUNTERS.read_text(encoding="utf-8").splitlines())
        if "oom_kill" in counters:
            return BOOT.read_text(encoding="utf-8").strip(), int(counters["oom_kill"])
    return None


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
