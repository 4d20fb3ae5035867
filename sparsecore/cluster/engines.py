"""Clusters of MPI engines: found or started, and stopped."""

import copy
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipyparallel as ipp
from IPython.paths import get_ipython_dir
from traitlets.config import Config

from sparsecore import provenance
from sparsecore.config import integers
from sparsecore.limits import cpu_count
from sparsecore.wasap.watch import trouble

_REGISTERING = 3.0  # seconds for engines that were just started to register
_ANSWER_SECONDS = 30.0  # for an engine's first answer: it imports the package
_SOURCES = provenance.sources_sha256()  # now: an engine keeps the modules that it has loaded
_GUARD = Path(__file__).with_name("guard.py")
_RESTART = "stop the cluster (ipcluster stop) and run ipcluster start --engines=MPI -n"
_BUSY = "is busy with work, perhaps of another client (wait, or interrupt it there)"


class ClusterError(RuntimeError):
    """A cluster that cannot be used, or that failed; the message says what to do."""


class WorkerError(ClusterError):
    """A worker that failed; `cause` is its exception's class, such as "FloatingPointError"."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class Cluster:
    """MPI engines that are ready to train, as `connect` yields them.

    `engines` and `pids` list each rank's engine and process ID; `own` is the ipyparallel cluster
    if `connect` has started it.
    """

    def __init__(self, client: Any, n: int, own: Any = None) -> None:
        self.client, self.n, self.own = client, n, own
        jobs: dict[int, Any] = {}

        def answered() -> bool:
            for engine in {*client.ids} - jobs.keys():  # MPI starts once all engines have the job
                jobs[engine] = client[engine].apply_async(_about_engine)
            return all(job.ready() for job in jobs.values())

        if not wait_until(answered, _ANSWER_SECONDS):
            silent = [engine for engine, job in jobs.items() if not job.ready()]
            raise ClusterError(
                f"engine {silent} of {len(jobs)} did not answer within {_ANSWER_SECONDS:.0f} s: it "
                f"{_BUSY}, or hangs (restart the cluster)"
            )
        try:
            facts = {engine: job.get() for engine, job in jobs.items()}
        except ipp.error.RemoteError as error:
            raise ClusterError(
                "the running cluster's engines cannot use sparsecore "
                f"({error.ename}: {error.evalue}): they may belong to another environment; stop "
                "the cluster (ipcluster stop)"
            ) from error
        if any(sources != _SOURCES for *_, sources in facts.values()):
            raise ClusterError(
                "the running cluster's engines and this process run different code of sparsecore, "
                "after an edit or in different environments: restart this process (a notebook's "
                f"kernel) if its code is the older one, else {_RESTART} {n}"
            )
        sizes = {size for _, size, *_ in facts.values()}
        if sizes != {len(facts)}:
            raise ClusterError(
                f"the running cluster has {len(facts)} engines in MPI jobs of {sorted(sizes)} "
                f"ranks: expected one job; {_RESTART} {n}"
            )
        self.engines = sorted(facts, key=lambda engine: facts[engine][0])[:n]
        self.pids = [facts[engine][2] for engine in self.engines]
        self.hosts = [facts[engine][3] for engine in self.engines]

    def __repr__(self) -> str:
        """Return the number of workers and their origin."""
        origin = "running" if self.own is None else "started here"
        return f"<Cluster of {self.n} MPI workers, {origin}>"

    def first(self, n: int) -> "Cluster":
        """Return a cluster of the first `n` workers; the others stay idle."""
        integers(1, self.n).check("n", n)
        part = copy.copy(self)
        part.n = n
        part.engines, part.pids, part.hosts = self.engines[:n], self.pids[:n], self.hosts[:n]
        return part

    def stopped(self) -> list[int]:
        """Return the ranks on this machine whose processes are stopped."""
        here = socket.gethostname()
        places = enumerate(zip(self.pids, self.hosts, strict=True))
        return [r for r, (pid, host) in places if host == here and trouble(pid) == "stopped"]

    def _busy(self) -> bool:
        """Return whether an engine has work, from any client."""
        status = self.client.queue_status(self.engines)
        return any(status[engine]["queue"] for engine in self.engines)

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call an importable function on every worker; return their AsyncResults by rank."""
        if gone := [rank for rank, e in enumerate(self.engines) if e not in self.client.ids]:
            raise ClusterError(f"rank {gone} ended after this cluster was connected: restart it")
        if not wait_until(lambda: not self._busy(), _REGISTERING):
            raise ClusterError(f"the running cluster {_BUSY}")
        return [self.client[e].apply_async(function, *args, **kwargs) for e in self.engines]


@contextmanager
def connect(n: int, *, profile: str = "default", timeout: float = 60.0) -> Iterator[Cluster]:
    """Use the running cluster, or start one of `n` MPI engines and stop it at the end.

    Use it in a ``with`` block, and pass the cluster that it yields to `train`.

    Parameters
    ----------
    n : int
        Workers. A running cluster may have more engines; the first `n` are used.
    profile : str
        IPython profile of the running cluster.
    timeout : float
        Seconds to wait for engines that are started here; for a running cluster's, at most 3.

    Yields
    ------
    Cluster

    Raises
    ------
    ClusterError
        If a running cluster has too few engines, or engines that do not share an MPI job, if there
        is no ``mpiexec``, or if engines do not start.
    """
    integers(1).check("n", n)
    client = _running(profile)
    if client is not None:
        with client:
            if not wait_until(lambda: len(client.ids) >= n, min(timeout, _REGISTERING)):
                raise ClusterError(
                    f"the running cluster has {len(client.ids)} engine(s), too few for {n} "
                    f"workers: use fewer workers, or {_RESTART} {n}; if it has just been started, "
                    "try again in a few seconds"
                )
            yield Cluster(client, n)
        return
    with _started(n) as own, own.connect_client_sync() as client:
        if not wait_until(lambda: len(client.ids) >= n, timeout):
            said = "".join(repr(engines.get_output()[-500:]) for engines in own.engines.values())
            raise ClusterError(
                f"only {len(client.ids)} of {n} engines started within {timeout:.0f} s; mpiexec: "
                f"{said}"
            )
        workers = Cluster(client, n, own)
        try:
            yield workers
        finally:
            for rank in workers.stopped():  # they would not notice a request to end
                os.kill(workers.pids[rank], signal.SIGKILL)


def _running(profile: str) -> Any:
    """Return a client of the running cluster, or None; warn of a stale cluster file."""
    path = Path(get_ipython_dir(), f"profile_{profile}", "security", "ipcontroller-client.json")
    if not path.exists():
        return None
    try:
        # The controller creates the file, and then writes it.
        wait_until(lambda: path.stat().st_size > 0, 1)
        return ipp.Client(str(path), timeout=5)
    except (OSError, ValueError, KeyError) as error:
        warnings.warn(
            f"{path} is left from a cluster that no longer answers ({error}); a new cluster is "
            "started. Delete the file, or ipcluster start will refuse to start",
            stacklevel=4,
        )
        return None


def mpiexec() -> str:
    """Return the path of mpiexec: beside this Python, activated or not, or else on PATH."""
    beside = Path(sys.executable).parent
    # An environment's own MPI is the one that its mpi4py was installed with.
    found = shutil.which("mpiexec", path=str(beside)) or shutil.which("mpiexec")
    if found is None:
        raise ClusterError(
            f"mpiexec: found neither on PATH nor in {beside}; activate the environment that has "
            "it, or install one: pip install mpich"
        )
    return found


@contextmanager
def _started(n: int) -> Iterator[Any]:
    """Start a cluster of `n` MPI engines, and stop it at the end."""
    config = Config()
    config.MPIEngineSetLauncher.mpi_cmd = [mpiexec()]
    # The engines register with the first heartbeat; the default makes them wait for seconds.
    config.Cluster.controller_args = ["--HeartMonitor.period=500"]
    # Stopping engines makes mpiexec complain, which a page should not show; errors are raised here.
    own = ipp.Cluster(n=n, engines="mpi", config=config, log_level=logging.CRITICAL)
    # If this process is killed, as a kernel may be, the engines would not notice: they would train
    # on, and then wait forever. A separate process stops them.
    guard = subprocess.Popen(
        [sys.executable, _GUARD, own.cluster_file], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt must not reach it
    )  # fmt: skip
    try:
        try:
            own.start_cluster_sync()
        except (OSError, RuntimeError) as error:
            raise ClusterError(f"the cluster did not start: {error}") from error
        if n > cpu_count():
            print(f"{n} workers share {cpu_count()} CPUs", file=sys.stderr)
        yield own
    finally:
        try:
            own.stop_cluster_sync()
        except Exception as error:
            warnings.warn(f"the cluster could not be stopped: {error}", stacklevel=2)
        guard.communicate(b"\n")  # a forked child may hold the pipe open, too


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until `condition` holds, for `seconds` at most; return whether it holds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def _about_engine() -> tuple[int, int, int, str, str]:
    """Return rank, number of ranks, process ID, host and hash of the code of an engine."""
    from sparsecore.wasap.mpi import MPI

    world = MPI.COMM_WORLD
    return world.rank, world.size, os.getpid(), socket.gethostname(), _SOURCES
