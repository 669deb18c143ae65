"""The project's record in MLflow: its store and its runs. Stages reach it through ``stages.recorder``.

Every stage that runs leaves one MLflow run: its parameters, its figures, the digests of what it read and wrote, the
load of the machine. Runs on a model are in the experiment ``tracking.experiment``, those on data in one of their own
behind ``-data``. Tags link them (``stages.lineage``), and ``training_run`` names the run of the model behind it. The
training run is the parent record of a model: what later stages measure on the model is logged into it as well.

Nothing leaves the machine: telemetry is off, and the default store is SQLite in the project's folder.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from stages.lineage import DVC_HASH, INPUT, MADE_BY, OUTPUT, TRAINED, ancestors, find_maker
from stages.origin import POINT_TAG, git_state, origin_tags, records_root
from vall_e.config import TrackingConfig, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

Purpose = Literal["model", "data"]
_MAX_VALUE = 6000  # characters of a parameter that MLflow stores
_MAX_BATCH = 100  # parameters or tags in one MLflow request


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numeric leaves of nested figures, with dotted names that MLflow accepts."""
    return {
        "".join(c if c.isalnum() or c in "._-/ " else "_" for c in key): float(value)
        for key, value in flatten(values, prefix).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def store_uri(config: TrackingConfig, root: Path) -> str:
    """Where the records live: ``tracking.uri``, or an absolute SQLite address in the folder of the project.

    A copy of the project that DVC makes for an experiment has the project's store, not one of its own.
    """
    return config.uri or f"sqlite:///{(records_root(root) / 'mlflow.db').resolve()}"


def _database(uri: str) -> Path | None:
    """The file of a SQLite address; None for any other store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve() if uri.startswith("sqlite:///") else None


def experiment_name(config: TrackingConfig, purpose: Purpose) -> str:
    return config.experiment if purpose == "model" else f"{config.experiment}-data"


def _quiet() -> None:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")


def open_store(config: TrackingConfig, root: Path, purpose: Purpose = "model") -> tuple[MlflowClient, str]:
    """The client and the id of the purpose's experiment.

    Database and experiment are made once, however many processes start. MLflow lays a new database out in many steps
    and trips over one that was killed on the way. So it is laid out under another name and renamed when it is whole.
    Artifacts are beside a database of SQLite, whoever makes the experiment; else its server says where.
    """
    _quiet()
    from mlflow import MlflowClient

    uri = store_uri(config, root)
    database = _database(uri)
    home = records_root(root) if database is None else database.parent
    work, fresh = home / ".work", home / ".work/mlflow-new.db"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "mlflow.lock"):
        if database is not None and not database.exists():
            for left in work.glob(f"{fresh.name}*"):
                left.unlink()
            MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
            os.replace(fresh, database)
        client = MlflowClient(uri)
        name = experiment_name(config, purpose)
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return client, experiment.experiment_id
        place = None if database is None else (home / "mlartifacts").as_uri()
        return client, client.create_experiment(name, artifact_location=place)


def experiments(client: MlflowClient, config: TrackingConfig) -> list[str]:
    """The ids of the project's experiments that are there."""
    names = [experiment_name(config, purpose) for purpose in ("model", "data")]
    found = [client.get_experiment_by_name(name) for name in names]
    return [experiment.experiment_id for experiment in found if experiment is not None]


class Run:
    """One MLflow run. Figures given to it appear at once, so a long training can be watched."""

    def __init__(
        self, client: MlflowClient, run_id: str, parent_id: str | None = None, experiments: Sequence[str] = ()
    ):
        self.client, self.id, self.parent_id, self._experiments = client, run_id, parent_id, experiments
        self._monitor = None

    def watch(self, seconds: float | None) -> None:
        """Sample the machine's load every so often until the run is closed, in a thread; null: not."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if seconds is not None:
            uri = self.client.tracking_uri
            self._monitor = SystemMetricsMonitor(self.id, sampling_interval=seconds, tracking_uri=uri)
            self._monitor.start()

    def params(self, values: Mapping[str, Any]) -> None:
        """Log nested parameters under dotted names."""
        from mlflow.entities import Param

        items = [Param(key, str(value)[:_MAX_VALUE]) for key, value in flatten(values).items()]
        for start in range(0, len(items), _MAX_BATCH):
            self.client.log_batch(self.id, params=items[start : start + _MAX_BATCH])

    def metrics(self, values: Mapping[str, Any], step: int = 0, when: float | None = None) -> None:
        """Log the numbers among nested figures under dotted names; ``when`` in seconds since the epoch."""
        self._metrics(self.id, numbers(values), step, when)

    def parent_metrics(self, values: Mapping[str, Any], prefix: str) -> None:
        """Log figures into the model's training run, each name behind ``prefix``. Nothing without a training run."""
        if self.parent_id:
            self._metrics(self.parent_id, numbers(values, prefix), 0, None)

    def _metrics(self, run_id: str, values: dict[str, float], step: int, when: float | None) -> None:
        from mlflow.entities import Metric

        items = [Metric(key, value, _milliseconds(when), step) for key, value in values.items()]
        for start in range(0, len(items), _MAX_BATCH):
            self.client.log_batch(run_id, metrics=items[start : start + _MAX_BATCH])

    def tags(self, values: Mapping[str, str], parent: bool = False) -> None:
        """Set tags (``parent``: of the training run as well)."""
        for run_id in self._runs(parent):
            for key, value in values.items():
                self.client.set_tag(run_id, key, value)

    def artifact(self, path: str | Path, folder: str | None = None, parent: bool = False) -> None:
        """Copy a file or a folder into the run's artifacts (``parent``: into the training run's as well)."""
        path = Path(path)
        log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        for run_id in self._runs(parent):
            log(run_id, str(path), folder)

    def _runs(self, parent: bool) -> set[str]:
        return {self.id, self.parent_id if parent and self.parent_id else self.id}

    def read(self, path: str, digest: str) -> None:
        """Record a dataset that the stage read: a dataset input, and the tag that links it to the run that made it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = InputTag("mlflow.data.context", path)
        dataset = Dataset(name=path, digest=digest[:36], source_type="local", source=f'{{"uri": "{path}"}}')
        self.client.log_inputs(self.id, [DatasetInput(dataset, [kind])])
        self.tags({f"{INPUT}{path}": digest})
        if maker := find_maker(self.client, self._experiments, path, digest):
            self.tags({f"{MADE_BY}{path}": maker})

    def wrote(self, path: str, digest: str, dvc_hash: str) -> None:
        """Record what the stage made: the tags by which later runs and ``dvc.lock`` find this one."""
        self.tags({f"{OUTPUT}{path}": digest, f"{DVC_HASH}{path}": dvc_hash})

    def trained(self, name: str) -> None:
        """Say on every data run before this one that a model was trained on its data; ``name`` is for people."""
        for run in ancestors(self.client, self.id):
            self.client.set_tag(run.info.run_id, f"{TRAINED}{self.id}", name)

    def close(self, error: str | None = None, stopped: bool = False, ended: float | None = None) -> None:
        """End the run: FINISHED, FAILED with the ``error``, or KILLED where it was ``stopped`` from outside."""
        monitor, self._monitor = self._monitor, None  # a close that failed is tried again
        if monitor is not None:
            monitor.finish()
        if error:
            self.client.set_tag(self.id, "error", error[:_MAX_VALUE])
        status = "FINISHED" if error is None else "KILLED" if stopped else "FAILED"
        self.client.set_terminated(self.id, status, _milliseconds(ended))


def exists(client: MlflowClient, run_id: str | None) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(run_id) and client.get_run(run_id) is not None
    except MlflowException:  # the model was trained elsewhere, or the database is a new one
        return False


def start(
    config: TrackingConfig,
    root: Path,
    stage: str,
    profile: str,
    purpose: Purpose = "model",
    training_run: str | None = None,
    started: float | None = None,
) -> Run:
    """Begin the run of one stage.

    Args:
        root: the project's folder.
        training_run: id of the run that trained the model this stage works on; one that is not in this
            store (a model from elsewhere) is left out.
        started: seconds since the epoch; now by default.
    """
    client, experiment = open_store(config, root, purpose)
    parent = training_run if exists(client, training_run) else None
    tags = {"stage": stage, "profile": profile, "host": socket.gethostname(), "mlflow.source.name": f"stages.{stage}"}
    tags |= git_state(root) | origin_tags()
    if parent:
        tags |= {"training_run": parent, "mlflow.parentRunId": parent}
    created = client.create_run(experiment, _milliseconds(started), tags, run_name=_name(stage, profile, tags))
    return Run(client, created.info.run_id, parent, experiments(client, config))


def _name(stage: str, profile: str, tags: Mapping[str, str]) -> str:
    """``train digits``; within an experiment also what it tries, so that its runs can be told from one another."""
    tried = tags.get(POINT_TAG) or tags.get("dvc.experiment")
    return f"{stage} {profile}" + (f": {tried}" if tried else "")


def _milliseconds(seconds: float | None) -> int:
    return int((time.time() if seconds is None else seconds) * 1000)


def record_cached(
    config: TrackingConfig,
    root: Path,
    stage: str,
    profile: str,
    metrics: Mapping[str, Any],
    outputs: Mapping[str, str],
    purpose: Purpose = "model",
    origin: Mapping[str, str] | None = None,
) -> str:
    """Record that DVC had no work for a stage: a run tagged ``cached`` that names the run that made its outs.

    Args:
        metrics: the stage's figures as they stand on disk.
        outputs: digest of each out folder.
        origin: further tags, which say what looked for work.

    Returns:
        the id of the new run.
    """
    client, experiment = open_store(config, root, purpose)
    tags = {"stage": stage, "profile": profile, "cached": "true", "mlflow.source.name": f"stages.{stage}"}
    makers = [find_maker(client, experiments(client, config), path, digest) for path, digest in outputs.items()]
    if makers and makers[0]:
        tags["cached_from"] = makers[0]
    tags |= git_state(root) | dict(origin or {})
    created = client.create_run(experiment, tags=tags, run_name=f"{_name(stage, profile, tags)} (cached)")
    run = Run(client, created.info.run_id)
    run.metrics(metrics)
    run.close()
    return run.id


def runs_tagged(config: TrackingConfig, root: Path, tag: str, value: str) -> list[dict[str, str]]:
    """The runs with a tag, oldest first: ``stage``, ``run`` (name), ``status``, ``run_id`` and ``experiment_id``."""
    client, _ = open_store(config, root)
    found = client.search_runs(
        experiments(client, config), f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time ASC"]
    )
    return [
        {
            "stage": run.data.tags.get("stage", ""),
            "run": run.info.run_name,
            "status": "CACHED" if run.data.tags.get("cached") else run.info.status,
            "run_id": run.info.run_id,
            "experiment_id": run.info.experiment_id,
        }
        for run in found
    ]
