"""Records of a store that fails and recovers, and of one that refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from stages import recorder, sending
from stages.recorder import Recorder
from stages.sending import Sender, may_pass, remedy
from vall_e.config import TrackingConfig

PAUSES = (0.001, 0.002)


def _metric(step: int) -> dict:
    return {"call": "metrics", "args": [{"loss": 1.0}, step], "time": 0.0}


class _Store:
    """Takes messages, but for the ``failures`` of the first tries."""

    def __init__(self, failures: int = 0, error: Exception | None = None):
        self.failures, self.error, self.taken = failures, error or ConnectionError("no route"), []

    def __call__(self, message: dict) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error
        self.taken.append(message)


def _sent(store, messages, patience=5.0, **more) -> Sender:
    sender = Sender(store, "train", pauses=PAUSES, **more)
    for message in messages:
        sender.put(message)
    sender.start()
    sender.finish(patience)
    return sender


def test_what_was_recorded_in_an_outage_is_sent_in_order_afterwards(capsys):
    store, messages = _Store(failures=7), [_metric(step) for step in range(50)]
    _sent(store, messages)
    assert store.taken == messages
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "does not take the record of train" in said and "no route" in said


def test_a_store_that_stays_away_costs_its_patience_and_is_said(capsys):
    began = time.monotonic()
    _sent(_Store(failures=10**9), [_metric(0), _metric(1)], patience=0.2)
    assert time.monotonic() - began < 5
    assert "MLflow's record of train is not whole: 2 records not sent" in capsys.readouterr().err


def test_a_refused_record_is_said_and_the_others_are_sent(capsys):
    store = _Store(1, MlflowException("no such key", error_code=INVALID_PARAMETER_VALUE))
    sender = _sent(store, [_metric(0), _metric(1)])
    assert [m["args"][1] for m in store.taken] == [1] and len(sender.refused) == 1
    assert "1 refused (metrics: MlflowException: no such key)" in capsys.readouterr().err


def test_files_that_cannot_be_stored_do_not_hold_up_figures():
    taken = []

    def store(message):
        if message["call"] == "artifact":
            raise ConnectionError("the bucket")
        taken.append(message)

    messages = [{"call": "artifact", "args": ["a"], "time": 0.0}, _metric(0), _metric(1)]
    _sent(store, messages, patience=0.1)
    assert taken == messages[1:]


def test_waiting_metrics_are_bounded_and_nothing_else_is_dropped(capsys):
    tags = {"call": "tags", "args": [{"a": "b"}], "time": 0.0}
    store = _Store()
    sender = _sent(store, [_metric(0), _metric(1), _metric(2), tags], limit=2)
    assert store.taken == [_metric(0), _metric(1), tags] and sender.dropped == 1
    assert "1 metrics dropped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (MlflowException("API request failed"), True),
        (MlflowException("locked", error_code=TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("bad", error_code=INVALID_PARAMETER_VALUE), False),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (FileNotFoundError("live/samples"), False),
        (TypeError("a mistake of ours"), False),
    ],
)
def test_what_may_pass_is_tried_again(error, passes):
    assert may_pass(error) == passes


def test_a_full_disk_is_named_as_one():
    assert "make room" in remedy(OSError(errno.ENOSPC, "No space left on device"))
    assert "make room" in remedy(MlflowException("(sqlite3.OperationalError) database or disk is full"))
    assert "check tracking.uri" in remedy(ConnectionError("refused"))


def _toy_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Recorder:
    """A recorder whose child has the run "abc" and then does ``body``."""
    script = tmp_path / "child.py"
    script.write_text(
        f"import sys, time, json\nsys.stdin.readline()\nprint({json.dumps({'id': 'abc'})!r}, flush=True)\n{body}\n"
    )
    popen = recorder.subprocess.Popen
    monkeypatch.setattr(
        recorder.subprocess, "Popen", lambda words, **more: popen([sys.executable, str(script)], **more)
    )
    return Recorder(TrackingConfig(), tmp_path, "train", "demo")


def test_a_recorder_that_dies_does_not_end_the_training(tmp_path, monkeypatch, capfd):
    with _toy_recorder(tmp_path, monkeypatch, "time.sleep(600)") as run:
        assert run.id == "abc"
        os.kill(run._child.pid, signal.SIGKILL)
        run._child.wait()
        for step in range(3):
            run.log(step, {"loss": 1.0})
    assert capfd.readouterr().err.count("record of train ends here: the recorder of run abc died") == 1


def test_a_store_that_hangs_holds_up_no_step(tmp_path, monkeypatch):
    """The pipe holds 64 kB, the records of these steps more; the store is stuck in the first."""
    body = (
        "from stages.sending import Sender\n"
        "sender = Sender(lambda message: time.sleep(600), 'train')\n"
        "sender.start()\n"
        "for line in sys.stdin: sender.put(json.loads(line))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(sending.__file__).parent.parent))
    with _toy_recorder(tmp_path, monkeypatch, body) as run:
        began = time.monotonic()
        for step in range(3000):
            run.log(step, {"loss": 1.0, "accuracy": 0.5})
        assert time.monotonic() - began < 20
