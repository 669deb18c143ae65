"""A team of Ray actors: the same workers as on one machine, on the nodes of a cluster. The only place that imports ray.

Every node needs the project's folder at the same path, for workers read recordings and write shards there
(docs/cluster.md). No dashboard, no usage statistics.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from vall_e.corpus.workers import THREADS, Outcome, Setup, Work, Worker
from vall_e.preparation import RayConfig

OBJECT_STORE_BYTES = 100 << 20  # of a cluster of this machine: jobs are small, results are files


class _Counter:
    """Progress of the jobs that are being done, told by their workers."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add(self, job: int, count: int) -> None:
        self.counts[job] = self.counts.get(job, 0) + count

    def of(self, jobs: list[int]) -> int:
        self.counts = {job: count for job, count in self.counts.items() if job in jobs}
        return sum(self.counts.values())


class _Actor:
    """A worker in a process of Ray's, in the project's folder."""

    def __init__(self, setup: Setup, work: Work, slot: int, folder: str, counter: Any) -> None:
        self.make, self.folder, self.counter = (setup, work, slot), folder, counter
        self.worker: Worker | None = None

    def here(self) -> None:
        """Answers once the worker has its place."""

    def do(self, number: int, job: Any) -> tuple[int, Exception | None, str]:
        """How often the job advanced, its error and its traceback."""
        if self.worker is None:
            try:
                os.chdir(self.folder)
            except OSError as error:
                host = os.uname().nodename
                remedy = "mount the project there at the same path (docs/cluster.md)"
                return 0, ValueError(f"executor.ray: node {host} has no {self.folder} ({error.strerror}): {remedy}"), ""
            setup, work, _ = self.make
            self.worker = Worker(setup, work, 0)  # Ray shows a worker only the GPUs that are its own
        total = 0

        def advance(count: int) -> None:
            nonlocal total
            total += count
            self.counter.add.remote(number, count)

        error, trace = self.worker.do(job, advance)
        return total, error, trace


class RayTeam:
    """One actor a slot, each with the resources that ``config`` books. Those without room take no jobs until there is.

    Raises:
        ValueError: ray is not installed, no cluster answers, or this machine has no GPU to book.
    """

    def __init__(self, setup: Setup, work: Work, size: int, config: RayConfig) -> None:
        self.ray, self.config = _import(), config
        self._own = not self.ray.is_initialized()
        if self._own:
            _connect(self.ray, size, config)
        if config.address is None and config.gpus_per_worker > self.ray.cluster_resources().get("GPU", 0.0):
            self.close()
            raise ValueError("executor.ray.gpus_per_worker: this machine has no such GPUs: set 0, or name a cluster")
        self._counter = self.ray.remote(_Counter).options(num_cpus=0).remote()
        resources = {"num_cpus": config.cpus_per_worker, "num_gpus": config.gpus_per_worker, "max_restarts": 0}
        self._class = self.ray.remote(_Actor).options(**resources, runtime_env=_environment())
        self._make = (self.ray.put(setup), self.ray.put(work))
        self._actors: list[Any] = [None] * size
        self._coming: dict[Any, int] = {}  # reference → slot of an actor that has not answered yet
        self._jobs: dict[Any, tuple[int, int]] = {}  # reference → slot, number of the job
        self._given = 0

    def free(self) -> list[int]:
        for slot, actor in enumerate(self._actors):
            if actor is None:
                self._actors[slot] = self._class.remote(*self._make, slot, os.getcwd(), self._counter)
                self._coming[self._actors[slot].here.remote()] = slot
        if len(self._coming) == len(self._actors):
            self.ray.wait(list(self._coming), num_returns=1, timeout=self.config.wait_seconds)
        if self._coming:
            there, _ = self.ray.wait(list(self._coming), num_returns=len(self._coming), timeout=0)
            for reference in there:  # one that died on the way is given a job all the same, which says so
                del self._coming[reference]
        away = {*self._coming.values(), *(slot for slot, _ in self._jobs.values())}
        if len(self._coming) == len(self._actors):
            raise ValueError(self._no_room())
        return [slot for slot in range(len(self._actors)) if slot not in away]

    def _no_room(self) -> str:
        has = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        nodes = ", ".join(f"{r.get('CPU', 0):g} CPUs and {r.get('GPU', 0):g} GPUs" for r in has)
        free = self.ray.available_resources()
        return (
            f"executor.ray: no worker found room in {self.config.wait_seconds:g} s: each asks for "
            f"{self.config.cpus_per_worker:g} CPUs and {self.config.gpus_per_worker:g} GPUs of a node, and the nodes "
            f"have {nodes or 'nothing'}, of which {free.get('CPU', 0):g} and {free.get('GPU', 0):g} in all are free: "
            "lower cpus_per_worker or gpus_per_worker, or raise wait_seconds where nodes are still to come"
        )

    def give(self, slot: int, job: Any) -> None:
        self._given += 1
        self._jobs[self._actors[slot].do.remote(self._given, job)] = (slot, self._given)

    def wait(self, seconds: float) -> list[Outcome]:
        ready, _ = self.ray.wait(list(self._jobs), num_returns=1, timeout=seconds)
        return [self._outcome(reference, *self._jobs.pop(reference)) for reference in ready]

    def _outcome(self, reference: Any, slot: int, number: int) -> Outcome:
        errors = self.ray.exceptions
        try:
            count, error, trace = self.ray.get(reference)
        except (errors.RayActorError, errors.NodeDiedError, errors.WorkerCrashedError):
            death = "its process or its node ended"
        except errors.OutOfMemoryError:
            death = "its node ran out of memory"
        else:
            return Outcome(slot, count, error, trace)
        self.ray.kill(self._actors[slot])
        self._actors[slot] = None
        return Outcome(slot, death=death)

    def counts(self) -> int:
        return self.ray.get(self._counter.of.remote([number for _, number in self._jobs.values()]))

    def close(self) -> None:
        for actor in (*getattr(self, "_actors", ()), getattr(self, "_counter", None)):
            if actor is not None:
                self.ray.kill(actor)
        if self._own:
            self.ray.shutdown()


def _import() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ValueError("executor.kind: ray needs Ray: pip install 'vall-e-workflow[ray]'") from None
    return ray


def _connect(ray: Any, size: int, config: RayConfig) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    here = threading.current_thread() is threading.main_thread()
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        if config.address is None:
            cores = max(1, round(size * config.cpus_per_worker + 0.49))
            ray.init("local", num_cpus=cores, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, **quiet)
        else:
            ray.init(config.address, **quiet)
    except Exception as error:  # Ray raises bare ones of a node that does not start
        ray.shutdown()
        where = "a cluster of this machine does not start" if config.address is None else "no Ray cluster answers"
        raise ValueError(f"executor.ray.address {config.address or 'null'}: {where} ({error})") from None
    finally:
        if here:
            signal.signal(signal.SIGTERM, on_term)  # Ray puts its own in its place


def _environment() -> dict[str, Any]:
    """One thread a worker, and the driver's code, which is on the shared folder."""
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"env_vars": dict.fromkeys(THREADS, "1") | {"PYTHONPATH": os.pathsep.join(paths)}}
