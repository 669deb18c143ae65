"""A stage's line to MLflow: a process of its own that records while the stage works.

Importing MLflow and opening its store takes longer than some stages do, and a slow server must not hold up a training
step. So the stage starts this module as a child and tells it what to record, a JSON line each. A store that cannot be
opened is an error of the stage; one that fails later is not: records wait in the child until it answers again, and what
it never took is said at the end. When the stage dies, even by SIGKILL, the line ends without a farewell and the child
closes the run as KILLED.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stages.sending import Sender, one_line, remedy
from vall_e.config import TrackingConfig

if TYPE_CHECKING:
    from stages import tracking

# Seconds that a stage which ended, or was stopped, waits for a store that does not answer.
PATIENCE_SECONDS, STOPPED_SECONDS = 300.0, 10.0


class TrackingError(RuntimeError):
    """MLflow did not take the record."""


class Recorder:
    """An MLflow run (``tracking.Run``) at the other end of a pipe. A context manager around a stage's work.

    Args:
        config: where the records live.
        root: the project's folder.
        stage, profile: names the run.
        purpose: ``model`` or ``data``: which experiment.
        training_run: id of the run that trained the model this stage works on.
    """

    def __init__(
        self,
        config: TrackingConfig,
        root: Path,
        stage: str,
        profile: str,
        purpose: str = "model",
        training_run: str | None = None,
    ) -> None:
        self._stage, self._lost = stage, False
        self._answer: dict[str, str] | None = None
        self._child = subprocess.Popen(
            [sys.executable, "-m", "stages.recorder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._send("open", config.model_dump(mode="json"), str(root), stage, profile, purpose, training_run)

    @property
    def id(self) -> str:
        """The run's id; waits until the run is there. Raises TrackingError where the store cannot be opened."""
        if self._answer is None:
            self._answer = json.loads(self._child.stdout.readline() or "{}")
        if "id" not in self._answer:
            code = self._child.wait()
            why = self._answer.get("error", f"its recorder ended with exit code {code}, see above")
            raise TrackingError(f"MLflow has no record of {self._stage}: {why}")
        return self._answer["id"]

    def params(self, values: dict[str, Any]) -> None:
        self._send("params", values)

    def metrics(self, values: dict[str, Any], step: int = 0) -> None:
        self._send("metrics", values, step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """What a training loop is handed as its logger."""
        self._send("metrics", {key: float(value) for key, value in values.items()}, step)

    def parent_metrics(self, values: dict[str, Any], prefix: str) -> None:
        self._send("parent_metrics", values, prefix)

    def tags(self, values: dict[str, str], parent: bool = False) -> None:
        self._send("tags", values, parent)

    def artifact(self, path: Path, folder: str | None = None, parent: bool = False) -> None:
        self._send("artifact", str(path), folder, parent)

    def read(self, path: str, digest: str) -> None:
        self._send("read", path, digest)

    def wrote(self, path: str, digest: str, dvc_hash: str) -> None:
        self._send("wrote", path, digest, dvc_hash)

    def trained(self, name: str) -> None:
        self._send("trained", name)

    def _send(self, call: str, *args: Any) -> None:
        line = json.dumps({"call": call, "args": args, "time": time.time()})
        if self._lost:
            return
        try:
            print(line, file=self._child.stdin, flush=True)
        except BrokenPipeError:
            self._lose()

    def _lose(self) -> None:
        """The child is gone. Raises TrackingError where it never had a run; else the stage goes on without."""
        run_id, self._lost = self.id, True
        print(f"MLflow's record of {self._stage} ends here: the recorder of run {run_id} died", file=sys.stderr)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        try:
            self._send("close", None if error is None else f"{type(error).__name__}: {error}", stopped)
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
            if self._child.wait() and not self._lost:
                self._lose()
        except TrackingError:
            if error is None:
                raise
        finally:
            self._child.stdout.close()


def main() -> int:
    """The child: records until told to stop. Signals to the group are the stage's affair; the pipe's end is ours."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    reply = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what MLflow prints must not be taken for the answer
    from stages import tracking

    first = json.loads(sys.stdin.readline() or "null")
    if first is None:
        return 1
    config, root, stage, *names = first["args"]
    tracked = TrackingConfig(**config)
    try:
        run = tracking.start(tracked, Path(root), stage, *names, started=first["time"])
        run.watch(tracked.system_seconds)
    except Exception as error:
        print(json.dumps({"error": f"{one_line(error)}; {remedy(error)}"}), file=reply, flush=True)
        return 1
    print(json.dumps({"id": run.id}), file=reply, flush=True)
    sender, patience = Sender(lambda message: _record(run, message), stage), STOPPED_SECONDS
    sender.start()
    message = None
    for line in sys.stdin:
        if line.endswith("\n"):  # else the stage was killed in the middle of it
            sender.put(message := json.loads(line))
    if message is None or message["call"] != "close":
        sender.put({"call": "close", "args": ["the stage's process ended without a word", True], "time": time.time()})
    elif not message["args"][1]:
        patience = PATIENCE_SECONDS
    sender.finish(patience)
    return 0


def _record(run: tracking.Run, message: dict[str, Any]) -> None:
    call, args, when = message["call"], message["args"], message["time"]
    times = {"metrics": "when", "close": "ended"}
    getattr(run, call)(*args, **({times[call]: when} if call in times else {}))


if __name__ == "__main__":
    sys.exit(main())
