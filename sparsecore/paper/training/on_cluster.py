"""A runner of the studies that trains in parallel; within `kept`, all runs share one cluster."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from sparsecore import cluster, files
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.limits import cpu_count
from sparsecore.mlp import SparseMLP
from sparsecore.paper.store import root

#: Workers of the study, where there are as many cores.
WORKERS = 5

_shared: dict[str, Any] = {}


def n_workers() -> int:
    """Return the number of workers: the study's, or one per core if there are fewer, at least 2."""
    return max(2, min(WORKERS, cpu_count()))


@contextmanager
def kept() -> Iterator[None]:
    """Keep the cluster of the first run for the next ones, and stop it at the end."""
    with ExitStack() as stack:
        _shared["stack"] = stack
        try:
            yield
        finally:
            _shared.clear()


def train(
    config: TrainConfig, data: Dataset | str, **options: Any
) -> tuple[SparseMLP, dict[str, Any]]:
    """Train on the cluster that is kept, as `cluster.train` does; the first call starts it."""
    if "failed" in _shared:  # the next run would fail as well, after a long wait
        raise cluster.ClusterError(_shared["failed"])
    try:
        if "workers" not in _shared:
            _shared["workers"] = _shared["stack"].enter_context(cluster.connect(n_workers()))
        workers, turn = _shared["workers"], files.lock(root() / ".cluster.lock")
        with nullcontext() if workers.own else turn:  # two pages may share a running cluster
            model, result = cluster.train(workers, config, data, **options)
    except cluster.ClusterError as error:
        if isinstance(error, cluster.WorkerError) and error.cause == "FloatingPointError":
            raise FloatingPointError(str(error)) from error  # the engines go on to the next run
        _shared["failed"] = str(error)
        raise
    return model, whole(result)


def whole(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result, or raise ClusterError if workers were lost: no study compares such runs."""
    if lost := result["parallel"]["failed_workers"]:
        causes = "; ".join(f"rank {worker['rank']}: {worker['cause']}" for worker in lost)
        raise cluster.ClusterError(f"workers were lost on the way: {causes}; run it again")
    return result


def run(
    data: Dataset, config: TrainConfig, *, observe: Callable[[Any, int], Any], **options: Any
) -> tuple[SparseMLP, dict[str, Any]]:
    """Train in parallel as `experiment.run` does in one process; `observe` gets no model."""
    seen: int | None = None

    def on_progress(state: dict[str, Any]) -> None:
        nonlocal seen
        epoch = int(state["epoch"])
        if seen is None:
            seen = epoch  # the run may have gone on from a checkpoint
        while seen < epoch:
            seen += 1
            observe(None, seen)

    model, result = train(config, data, on_progress=on_progress, **options)
    on_progress({"epoch": config.epochs})
    # The record of every update belongs to F-parallel.
    return model, {**result, "parallel": {"workers": n_workers()}}
