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
    """One actor a slot, each with the resources that ``config`` books.

    Raises:
        ValueError: ray is not installed, no cluster answers, or this machine has no GPU to book.
    """

    def __init__(self, setup: Setup, work: Work, size: int, config: RayConfig) -> None:
        self.size, self.ray = size, _import()
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
        self._actors = [self._actor(slot) for slot in range(size)]
        self._jobs: dict[Any, tuple[int, int]] = {}  # reference → slot, number of the job
        self._given = 0

    def _actor(self, slot: int) -> Any:
        return self._class.remote(*self._make, slot, os.getcwd(), self._counter)

    def give(self, slot: int, job: Any) -> None:
        if self._actors[slot] is None:
            self._actors[slot] = self._actor(slot)
        self._given += 1
        self._jobs[self._actors[slot].do.remote(self._given, job)] = (slot, self._given)

    def wait(self, seconds: float) -> list[Outcome]:
        ready, _ = self.ray.wait(list(self._jobs), num_returns=1, timeout=seconds)
        return [self._outcome(reference, *self._jobs.pop(reference)) for reference in ready]

    def _outcome(self, reference: Any, slot: int, number: int) -> Outcome:
        try:
            count, error, trace = self.ray.get(reference)
        except self.ray.exceptions.RayActorError:
            self._actors[slot] = None
            return Outcome(slot, death="its process or its node ended")
        return Outcome(slot, count, error, trace)

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
