"""Records on their way to MLflow: sent in order, each until the store takes it or refuses it.

A store that does not answer for a while costs nothing but time: records wait here, in memory.
"""

from __future__ import annotations

import errno
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
SAY_SECONDS = 60.0  # between two complaints about a store that does not answer
_TRY_LATER = (408, 429)  # HTTP: timeout, too many requests


class Sender(threading.Thread):
    """A thread that sends messages. Daemonic: a process that has waited long enough may leave it behind.

    Args:
        send: gives one message to the store.
        stage: whose record it is, for what is said on stderr.
        pauses: seconds between two tries, the first and the longest; each is twice the one before.
        limit: metrics that wait at most; more are dropped and counted.

    Attributes:
        refused: what the store said to records that it will not have.
        dropped: metrics above ``limit``.
    """

    def __init__(
        self,
        send: Callable[[Message], None],
        stage: str,
        pauses: tuple[float, float] = (1.0, 30.0),
        limit: int = 100_000,
    ) -> None:
        super().__init__(daemon=True)
        self._send, self._stage, self._pauses, self._limit = send, stage, pauses, limit
        self._waiting: deque[Message] = deque()
        self._changed = threading.Condition()
        self._ends: float | None = None  # time.monotonic() after which it gives up
        self._said = -math.inf
        self.refused: list[str] = []
        self.dropped = 0

    def put(self, message: Message) -> None:
        """Take a message; never waits for the store."""
        with self._changed:
            if len(self._waiting) >= self._limit and message["call"] == "metrics":
                self.dropped += 1
                return
            self._waiting.append(message)
            self._changed.notify()

    def finish(self, patience: float) -> None:
        """Wait until all is sent, or the store has not answered for ``patience`` seconds more; say what is missing."""
        with self._changed:
            self._ends = time.monotonic() + patience
            self._changed.notify()
        self.join()
        missing = [f"{len(self._waiting)} records not sent"] * bool(self._waiting)
        missing += [f"{len(self.refused)} refused ({self.refused[0]})"] if self.refused else []
        missing += [f"{self.dropped} metrics dropped, {self._limit} were waiting"] * bool(self.dropped)
        if missing:
            _say(f"MLflow's record of {self._stage} is not whole: {'; '.join(missing)}")

    def run(self) -> None:
        pause, longest = self._pauses
        while (message := self._next()) is not None:
            if self._is_settled(message):
                with self._changed:
                    self._waiting.popleft()
                pause = self._pauses[0]
                continue
            if self._ends is not None and time.monotonic() > self._ends:
                return
            if message["call"] == "artifact":  # a store of files that fails must not hold up the figures
                with self._changed:
                    self._waiting.rotate(-1)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _next(self) -> Message | None:
        """The first message, which stays in its place; None when there is nothing more to come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ends is not None)
            return self._waiting[0] if self._waiting else None

    def _is_settled(self, message: Message) -> bool:
        """Try to send a message. False where the store failed and it has to be tried again."""
        try:
            self._send(message)
        except Exception as error:
            if may_pass(error):
                if time.monotonic() - self._said > SAY_SECONDS:
                    self._said = time.monotonic()
                    waiting = f"{len(self._waiting)} wait, {self._stage} goes on"
                    _say(f"MLflow does not take the record of {self._stage} ({waiting}): {one_line(error)}")
                return False
            self.refused.append(f"{message['call']}: {one_line(error)}")
            _say(f"MLflow refuses a record of {self._stage}: {self.refused[-1]}")
        return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def may_pass(error: BaseException) -> bool:
    """The store, its network or its disk failed; else it was asked for what it never gives."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status >= 500 or status in _TRY_LATER
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def remedy(error: BaseException) -> str:
    """What to do about a store that could not be opened."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "disk is full" in str(error):
        return "the disk that tracking.uri (params.yaml) is on is full: make room there"
    return "check tracking.uri in params.yaml and that its server answers"
