"""Memory that was freed goes back to the system."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import psutil
import pytest
import torch

from vall_e import memory
from vall_e.memory import give_back, limit_mb, memory_mb, oom_kills, peak_mb


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc gives memory back")
def test_what_lies_between_held_blocks_is_given_back() -> None:
    process, block = psutil.Process(), 2**14  # 64 KiB, small enough to come out of the heap
    blocks = [torch.ones(block) for _ in range(3000)]
    kept = blocks[::100]
    del blocks
    before = process.memory_info().rss
    give_back()
    assert before - process.memory_info().rss > 2500 * 4 * block
    assert all(bool((each == 1).all()) for each in kept)


def test_the_peak_covers_what_is_held() -> None:
    held = torch.ones(2**24)
    assert peak_mb("cpu") >= held.numel() * 4 / 2**20


@pytest.mark.parametrize("own, file, megabytes", [
    ("0::/job/step\n", "job/memory.max", 300),
    ("0::/job/step\n", "job/step/memory.max", 300),
    ("0::/\n", "memory.max", 300),  # what a container sees of its own
    ("4:cpu,cpuacct:/a\n3:memory:/a/b\n0::/x\n", "memory/a/memory.limit_in_bytes", 300),
    ("3:memory:/docker/1\n", "memory/memory.limit_in_bytes", 300),
    ("0::/job/step\n", "other/memory.max", math.inf),
])  # fmt: skip
def test_the_limit_of_a_control_group_is_that_of_it_or_of_one_around_it(
    own: str, file: str, megabytes: float, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in (("job/step/memory.max", "max"), (file, str(300 * 2**20))):
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    assert limit_mb(tmp_path / "groups", tmp_path / "own") == megabytes
    assert 0 < memory_mb("cpu") <= psutil.virtual_memory().total / 2**20 + 1


def test_what_the_oom_killer_did_is_read_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BOOT", "COUNTERS"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert oom_kills() is None
    (tmp_path / "BOOT").write_text("f00\n")
    (tmp_path / "COUNTERS").write_text("nr_free_pages 12\noom_kill 3\n")
    assert oom_kills() == ("f00", 3)
