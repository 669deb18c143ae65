"""Memory that was freed goes back to the system."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from vall_e.memory import give_back, peak_mb


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
