"""A stage's line to MLflow: a process of its own that records while the stage works.

Importing MLflow and opening its store takes longer than some stages do, and a slow server must not hold up a training
step. So the stage starts this module as a child and tells it what to record, a JSON line each. When the stage dies,
even by SIGKILL, the line ends without a farewell and the child closes the run as KILLED.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from vall_e.config import TrackingConfig


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
        self._stage, self._id = stage, None
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
        """The run's id; waits until the run is there."""
        if self._id is None:
            self._id = self._child.stdout.readline().strip()
            if not self._id:
                self._fail()
        return self._id

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

    def wrote(self, path: str, digest: str) -> None:
        self._send("wrote", path, digest)

    def trained(self, name: str) -> None:
        self._send("trained", name)

    def _send(self, call: str, *args: Any) -> None:
        line = json.dumps({"call": call, "args": args, "time": time.time()})
        try:
            print(line, file=self._child.stdin, flush=True)
        except BrokenPipeError:
            self._fail()

    def _fail(self) -> None:
        code = self._child.wait()
        raise TrackingError(
            f"MLflow has no record of {self._stage} (its recorder ended with exit code {code}, see above): "
            "check tracking.uri in params.yaml and that its server answers"
        )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._send("close", None, False)
            else:
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                self._send("close", f"{type(error).__name__}: {error}", stopped)
            self._child.stdin.close()
        except (TrackingError, BrokenPipeError):
            if error is None:
                raise
        if self._child.wait() and error is None:
            self._fail()
        self._child.stdout.close()


def main() -> int:
    """The child: records until told to stop. Signals to the group are the stage's affair; the pipe's end is ours."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    reply = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what MLflow prints must not be taken for the answer
    from stages import tracking

    run = None
    try:
        for line in sys.stdin:
            message = json.loads(line)
            call, args, when = message["call"], message["args"], message["time"]
            if call == "open":
                config, root, *names = args
                run = tracking.start(TrackingConfig(**config), Path(root), *names, started=when)
                print(run.id, file=reply, flush=True)
                run.watch(TrackingConfig(**config).system_seconds)
            elif call == "close":
                run.close(*args, ended=when)
                return 0
            elif call == "metrics":
                run.metrics(*args, when=when)
            else:
                getattr(run, call)(*args)
    except Exception as error:
        if run is None or not isinstance(error, BrokenPipeError):
            print(f"MLflow: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if run is not None:
        run.close("the stage's process ended without a word", True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
