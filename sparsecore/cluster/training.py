"""A training run on a cluster: start it, show its progress, and raise one error for all."""

import os
import signal
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import ipyparallel as ipp

from sparsecore.cluster.engines import Cluster, ClusterError, WorkerError, wait_until
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.mlp import SparseMLP
from sparsecore.progress import epoch_bar
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.watch import PATIENCE, interrupts_held_back

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 2.0  # to wait for the others' errors after one engine has failed


def train(
    cluster: Cluster, config: TrainConfig, dataset: str | Dataset, plan: Plan | None = None, *,
    seed: int = 0, threads: int = 1, limit: int | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None, resume: bool = False,
    on_progress: Callable[[dict[str, Any]], None] | None = None, patience: float = PATIENCE,
    check: Callable[[], Any] | None = None,
) -> tuple[SparseMLP, dict[str, Any]]:  # fmt: skip
    """Train on the cluster's workers and show progress.

    Parameters
    ----------
    cluster : Cluster
    config : TrainConfig
    dataset : str or Dataset
        A name, whose data every worker loads; or a Dataset, which is sent to the workers.
    plan : wasap.Plan, optional
    seed, threads : int
    limit : int, optional
        Number of training rows; all by default.
    checkpoint_path, resume, patience
        See `wasap.run`; the path must lead to the same file on all workers.
    on_progress : callable, optional
        Called with the state of the run, instead of showing it.
    check : callable, optional
        Called several times per second; an exception that it raises ends the run.

    Returns
    -------
    model : SparseMLP
    result : dict
        As `wasap.run` returns them.

    Raises
    ------
    ClusterError
        If a worker fails (a `WorkerError`) or is killed; the message names the rank and the cause.
        The cluster must be restarted if a worker was killed or hangs; otherwise it is ready for
        the next run.

    Notes
    -----
    An interrupt (Ctrl-C, or a notebook's stop button) also interrupts the engines, which are then
    ready for the next run.
    """
    plan = plan or Plan()
    title = f"{plan.algorithm.upper()}, {cluster.n} workers"
    path = None if checkpoint_path is None else os.path.abspath(checkpoint_path)
    jobs: list[Any] = []
    ended: list[int] = []  # the ranks in the order in which they ended
    last: dict[str, Any] = {}
    stopped: list[int] = []
    with epoch_bar(title, config.epochs, hidden=on_progress is not None) as show:
        try:
            with interrupts_held_back():  # some engines alone would wait for the others inside MPI
                jobs = cluster.submit(
                    _train_on_engine, cluster.n, config, dataset, limit, plan, patience, seed=seed,
                    threads=threads, checkpoint_path=path, resume=resume,
                )  # fmt: skip
            for rank, job in enumerate(jobs):
                job.add_done_callback(lambda _, rank=rank: ended.append(rank))
            while not jobs[0].ready():
                jobs[0].wait(_POLL_SECONDS)
                if check is not None:
                    check()
                stopped = cluster.stopped() or stopped
                if (state := dict(jobs[0].data or {})) != last:
                    last = state
                    (on_progress or show)(last)
                if any(job.ready() and not job.successful() for job in jobs):
                    break
        except BaseException:
            # Interrupt the engines, too: they would train to the end and not answer until then.
            if jobs:
                with suppress(IndexError, ipp.error.KernelError):  # an engine that has ended
                    cluster.client.send_signal(signal.SIGINT, targets=cluster.engines, block=False)
                wait_until(lambda: all(job.ready() for job in jobs), _GRACE_SECONDS)
            raise
        _raise_errors(cluster, jobs, ended, stopped, path)
        return jobs[0].get()


def _raise_errors(
    cluster: Cluster, jobs: list[Any], ended: list[int], stopped: list[int], path: str | None
) -> None:
    """Raise the first cause if a worker failed; the other workers' errors only say that one did."""
    if all(not job.ready() or job.successful() for job in jobs):
        return
    wait_until(lambda: all(job.ready() for job in jobs), _GRACE_SECONDS)
    hint = f"; resume=True continues from {path}" * bool(path and os.path.exists(path))
    causes = {}
    for rank, job in enumerate(jobs):
        if job.ready() and not job.successful():
            error = job.exception()  # as it was on the engine, or ipyparallel's own
            name = getattr(error, "ename", type(error).__name__)
            causes[rank] = name, getattr(error, "evalue", error)
    gone = [rank for rank in ended if causes.get(rank, ("", ""))[0] == "EngineError"]
    told = [r for r, (name, _) in causes.items() if name in ("ParallelError", "NotStarted")]
    if gone and not (stopped and told):  # the rank that waited for it says more
        # When one process ends, MPI ends all others some milliseconds later, and ipyparallel may
        # report one of those first. A process that waits for a stopped one ends on its own.
        lost = "seems to be the first that was killed or crashed"
        rank, what = (stopped[0], "is stopped") if stopped else (gone[0], lost)
        raise ClusterError(
            f"rank {rank} (process {cluster.pids[rank]}) {what}, and MPI ended all engines; "
            f"restart the cluster{hint}"
        )
    rank = min(causes.keys() - {*told, *gone} or told)
    name, text = causes[rank]
    if silent := [r for r, job in enumerate(jobs) if not job.ready()]:
        hint = f" (rank {silent} did not answer: restart the cluster)" + hint
    raise WorkerError(f"rank {rank}: {name}: {text}{hint}", name)


def _train_on_engine(
    n_workers: int, config: TrainConfig, data: str | Dataset, limit: int | None, plan: Plan,
    patience: float, **options: Any,
) -> tuple[SparseMLP | None, dict[str, Any] | None]:  # fmt: skip
    """Do one engine's part of a run."""
    from ipyparallel.datapub import publish_data

    from sparsecore import datasets
    from sparsecore.wasap import shm
    from sparsecore.wasap.mpi import first_ranks
    from sparsecore.wasap.phases import run_on
    from sparsecore.wasap.ranks import Ranks
    from sparsecore.wasap.watch import interruptible

    def load() -> Dataset:
        with interruptible():  # it may take minutes
            found = datasets.load(data) if isinstance(data, str) else data
            return found.limited(limit, options["seed"])

    shm.unname()  # ipyparallel has started MPI, and every rank has answered
    with (
        interrupts_held_back(),
        first_ranks(n_workers) as comm,
        closing(Ranks(comm, patience=patience)) as ranks,
    ):
        # The ranks have met: from here on, a rank that fails, is stopped or ends is named.
        found = ranks.together(load)
        return run_on(ranks, found, config, plan, on_progress=publish_data, **options)
