"""How long training took: what is no training does not count as its time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of training, those before a resume included, those of what is ``stopped`` left out.

    Attributes:
        apart: seconds that were left out, by this process.
    """

    def __init__(self) -> None:
        self.apart, self._before, self._since = 0.0, 0.0, None

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self, before: float | None = None) -> None:
        """Go on from ``before`` seconds; None: from where it is."""
        self._before, self._since = self.seconds if before is None else before, time.perf_counter()

    def stop(self) -> None:
        self._before, self._since = self.seconds, None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Inside, it stands still."""
        self.stop()
        began = time.perf_counter()
        try:
            yield
        finally:
            self.apart += time.perf_counter() - began
            self.start()
