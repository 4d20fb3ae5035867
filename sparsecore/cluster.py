"""Parallel training from a notebook: MPI engines of ipyparallel, found or started, and driven.

`connect` gives a cluster, `train` runs `wasap` on its engines and shows how it goes. What the
engines do is written in `wasap`.

A cluster is started in a terminal with ``ipcluster start --engines=MPI -n 6``, or by `connect` for
as long as its block lasts. On a machine with Slurm the same training runs without a notebook::

    #!/bin/bash
    #SBATCH --ntasks=5 --cpus-per-task=1
    srun python -m sparsecore train --dataset fashion-mnist --algorithm wasap --json
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipyparallel as ipp
from traitlets.config import Config

from sparsecore.mlp import SparseMLP
from sparsecore.team import cpu_count
from sparsecore.train import TrainConfig

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0  # for the others' errors, when one engine has failed


class ClusterError(RuntimeError):
    """A cluster that cannot be used, or that broke; the message says what to do."""


class Cluster:
    """MPI engines that are ready to train.

    Made by `connect`.

    Attributes
    ----------
    client : ipyparallel.Client
    engines : list of int
        Engine of each rank.
    pids : list of int
        Process of each rank.
    own : ipyparallel.Cluster or None
        The cluster, if `connect` has started it.
    """

    def __init__(self, client: Any, n: int, own: Any = None) -> None:
        self.client, self.own = client, own
        facts = client[:].apply_async(_about_engine).get(timeout=60)
        world = sorted((rank, engine, pid) for engine, (rank, size, pid) in zip(
            client.ids, facts, strict=True
        ))  # fmt: skip
        sizes = {size for _, size, _ in facts}
        if sizes != {len(facts)}:
            raise ClusterError(
                f"the running cluster has {len(facts)} engines in MPI jobs of {sorted(sizes)} "
                f"ranks: expected one job; stop it (ipcluster stop) and start it with "
                f"ipcluster start --engines=MPI -n {n}"
            )
        self.engines = [engine for _, engine, _ in world[:n]]
        self.pids = [pid for _, _, pid in world[:n]]
        self.n = n

    def __repr__(self) -> str:
        """Return the number of workers and where they come from."""
        origin = "running" if self.own is None else "started here"
        return f"<Cluster of {self.n} MPI workers, {origin}>"

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call an importable function on every worker; return their AsyncResults by rank."""
        return [
            self.client[engine].apply_async(function, *args, **kwargs) for engine in self.engines
        ]


@contextmanager
def connect(n: int, *, profile: str = "default", timeout: float = 60.0) -> Iterator[Cluster]:
    """Use the cluster that runs, or start one of `n` MPI engines and stop it at the end.

    Parameters
    ----------
    n : int
        Workers. A running cluster may have more engines; the first are used.
    profile : str
        IPython profile of the running cluster.
    timeout : float
        Seconds to wait for engines.

    Yields
    ------
    Cluster

    Raises
    ------
    ClusterError
        If a running cluster has too few engines or none that share an MPI job, if there is no
        ``mpiexec``, or if engines do not come up.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 worker, got {n}")
    client = _running(profile)
    if client is not None:
        with client:
            _wait_for_engines(client, 1, min(timeout, 10.0))
            if len(client.ids) < n:
                raise ClusterError(
                    f"the running cluster has {len(client.ids)} engine(s), and {n} workers were "
                    f"asked for: ask for fewer, or stop it (ipcluster stop) and start it with "
                    f"ipcluster start --engines=MPI -n {n}"
                )
            yield Cluster(client, n)
        return
    own = _start(n)
    try:
        client = own.connect_client_sync()
        with client:
            _wait_for_engines(client, n, timeout, own)
            yield Cluster(client, n, own)
    finally:
        _stop(own)


def _running(profile: str) -> Any:
    """Return a client of the running cluster, or None; a stale cluster file is warned of."""
    path = _security(profile) / "ipcontroller-client.json"
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text())
        host = facts["interface"].split("://")[-1]
        host = facts.get("location", host) if host in ("*", "0.0.0.0") else host
        socket.create_connection((host, int(facts["registration"])), timeout=2).close()
        return ipp.Client(str(path), timeout=5)
    except (OSError, ValueError, KeyError, TimeoutError) as error:
        warnings.warn(
            f"{path} is left from a cluster that no longer answers ({error}); a new one is "
            "started. Delete the file, or ipcluster start will refuse to start",
            stacklevel=4,
        )
        return None


def _security(profile: str) -> Path:
    from IPython.paths import get_ipython_dir

    return Path(get_ipython_dir()) / f"profile_{profile}" / "security"


def _mpiexec() -> str:
    """Return the path of mpiexec: on PATH, or beside this Python (environment not activated)."""
    beside = Path(sys.executable).parent
    found = shutil.which("mpiexec") or shutil.which("mpiexec", path=str(beside))
    if found is None:
        raise ClusterError(
            f"mpiexec: found neither on PATH nor in {beside}; activate the environment that has "
            "it, or install one: pip install mpich"
        )
    return found


def _start(n: int) -> Any:
    """Start a cluster of `n` MPI engines."""
    config = Config()
    config.MPIEngineSetLauncher.mpi_cmd = [_mpiexec()]
    # The engines register with the first heartbeat; the default makes them wait for seconds.
    config.Cluster.controller_args = ["--HeartMonitor.period=500"]
    # Stopping engines makes mpiexec complain, which a page should not show; errors are raised here.
    own = ipp.Cluster(n=n, engines="mpi", config=config, log_level=logging.CRITICAL)
    own.start_cluster_sync()
    if n > cpu_count():
        print(f"{n} workers share {cpu_count()} CPUs", file=sys.stderr)
    return own


def _wait_for_engines(client: Any, n: int, timeout: float, own: Any = None) -> None:
    end = time.monotonic() + timeout
    while len(client.ids) < n:
        if time.monotonic() > end:
            output = ""
            for engine_set in own.engines.values() if own is not None else []:
                output += f"; mpiexec said: {engine_set.get_output()[-500:]!r}"
            raise ClusterError(
                f"{len(client.ids)} of {n} engines came up within {timeout:.0f} s{output}"
            )
        time.sleep(0.05)


def _stop(own: Any) -> None:
    """Stop a cluster and whatever of its processes does not listen."""
    try:
        own.stop_cluster_sync()
    except Exception as error:
        warnings.warn(f"the cluster did not stop by itself: {error}", stacklevel=2)


def _about_engine() -> tuple[int, int, int]:
    """Return rank, size and process number of an engine."""
    from sparsecore.wasap.mpi import world

    return world().rank, world().size, os.getpid()


# --- training ------------------------------------------------------------------------------------


def train(
    cluster: Cluster,
    config: TrainConfig,
    dataset: str,
    *,
    algorithm: str = "wasap",
    phase1: float = 0.7,
    warmup: int = 5,
    seed: int = 0,
    threads: int = 1,
    limit: int | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    patience: float = 8.0,
) -> tuple[SparseMLP, dict[str, Any]]:
    """Train on the cluster's workers and show how it goes.

    Parameters
    ----------
    cluster : Cluster
    config : TrainConfig
    dataset : str
        Name; every worker loads its own shard.
    algorithm, phase1, warmup
        See `wasap.Plan`.
    seed, threads : int
    limit : int, optional
        Train on so many rows.
    checkpoint_path, resume, patience
        See `wasap.run`; the path must mean the same to all workers.
    on_progress : callable, optional
        Called with where the run stands, instead of showing it.

    Returns
    -------
    model : SparseMLP
    result : dict
        As `wasap.run` returns them.

    Raises
    ------
    ClusterError
        If a worker fails or is killed; the message names the rank and the cause. The cluster must
        then be started anew.
    """
    show = Display() if on_progress is None else on_progress
    path = None if checkpoint_path is None else os.path.abspath(checkpoint_path)
    jobs = cluster.submit(
        _train_on_engine,
        {"config": config, "dataset": dataset, "limit": limit, "n_workers": cluster.n},
        {"algorithm": algorithm, "phase1": phase1, "warmup": warmup},
        {
            "seed": seed, "threads": threads, "checkpoint_path": path, "resume": resume,
            "patience": patience,
        },
    )  # fmt: skip
    ended: list[int] = []  # the ranks in the order in which they did
    for rank, job in enumerate(jobs):
        job.add_done_callback(lambda _, rank=rank: ended.append(rank))
    shown = None
    while not jobs[0].ready():
        jobs[0].wait(_POLL_SECONDS)
        state = jobs[0].data
        if state and state != shown:
            shown = dict(state)
            show(shown)
        if any(job.ready() and not job.successful() for job in jobs):
            break
    _raise_errors(cluster, jobs, ended, path)
    model, result = jobs[0].get(timeout=60)
    if isinstance(show, Display):
        show.finish(result)
    return model, result


def _raise_errors(cluster: Cluster, jobs: list[Any], ended: list[int], path: str | None) -> None:
    """Raise the first cause, if a worker failed: the others only say that one did."""
    if all(not job.ready() or job.successful() for job in jobs):
        return
    end = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < end and not all(job.ready() for job in jobs):
        jobs[0].wait(_POLL_SECONDS)
    hint = "" if path is None or not os.path.exists(path) else f"; resume=True goes on from {path}"
    causes = {}
    for rank, job in enumerate(jobs):
        if job.ready() and not job.successful():
            try:
                job.get(timeout=1)
            except ipp.error.RemoteError as error:
                causes[rank] = error.ename, error.evalue
            except Exception as error:
                causes[rank] = type(error).__name__, str(error)
    gone = [rank for rank in ended if causes.get(rank, ("", ""))[0] == "EngineError"]
    if gone:
        # When one process ends, MPI ends all others, some milliseconds later.
        raise ClusterError(
            f"rank {gone[0]} (process {cluster.pids[gone[0]]}) was killed or crashed, and MPI "
            f"ended all engines; start the cluster anew{hint}"
        )
    first = [rank for rank, (name, _) in causes.items() if name != "ParallelError"]
    rank = min(first or causes)
    name, text = causes[rank]
    silent = [r for r, job in enumerate(jobs) if not job.ready()]
    if silent:
        hint = f" (rank {silent} did not answer: start the cluster anew)" + hint
    raise ClusterError(f"rank {rank}: {name}: {text}{hint}")


def _train_on_engine(
    what: dict[str, Any], plan: dict[str, Any], options: dict[str, Any]
) -> tuple[SparseMLP | None, dict[str, Any] | None]:
    """Take one engine's part in a run."""
    from ipyparallel.datapub import publish_data

    from sparsecore import datasets, wasap
    from sparsecore.wasap.mpi import first_ranks

    data, limit = datasets.load(what["dataset"]), what["limit"]
    if limit is not None:
        data = data.limited(limit, random_state=options["seed"])
    with first_ranks(what["n_workers"]) as comm:
        return wasap.run(
            data, what["config"], wasap.Plan(**plan), comm=comm, on_progress=publish_data, **options
        )


class Display:
    """The state of a run in a notebook: one output that is rewritten, and a clean one at the end.

    Outside IPython it stays silent.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        try:
            from IPython import get_ipython

            self._active = get_ipython() is not None
        except ImportError:
            self._active = False

    def __call__(self, state: dict[str, Any]) -> None:
        """Show where the run stands."""
        accuracy = state["test_accuracy"]
        rows = {
            "phase": state["phase"],
            "epoch": f"{state['epoch']:.1f} of {state['epochs']}",
            "test accuracy": "–" if accuracy is None else f"{100 * accuracy:.2f} %",
            "updates": f"{state['updates']:,} ({state['updates_per_second']:,.0f} per second)",
            "staleness": f"{state['staleness']:.2f}",
            "seconds": f"{state['elapsed']:.1f}",
        }
        self._show(f"{state['algorithm'].upper()}, {state['workers']} workers", rows)

    def finish(self, result: dict[str, Any]) -> None:
        """Show the outcome."""
        config, parallel = result["config"], result["parallel"]
        histogram = parallel["staleness_histogram"]
        staleness = sum(s * n for s, n in enumerate(histogram)) / max(1, sum(histogram))
        rows = {
            "test accuracy": f"{100 * result['test_accuracy']:.2f} %",
            "epochs": f"{config['epochs']}, of which {config['phase1_epochs']} in phase 1",
            "updates": f"{parallel['updates']:,}",
            "updates per second": f"{parallel['updates_per_second']:,.0f}",
            "mean staleness": f"{staleness:.2f}",
            "samples per second": f"{result['samples_per_second']:,.0f}",
            "seconds of training": f"{result['seconds']['train']:.1f}",
        }
        for lost in parallel["failed_workers"]:
            rows[f"rank {lost['rank']} lost"] = lost["cause"]
        self._show(
            f"{config['algorithm'].upper()}, {config['workers']} workers: {config['dataset']}", rows
        )

    def _show(self, title: str, rows: dict[str, Any]) -> None:
        if not self._active:
            return
        from html import escape

        from IPython.display import HTML, display

        body = "".join(f"<tr><td>{k}</td><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
        page = HTML(f"<table><caption>{escape(title)}</caption>{body}</table>")
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)
