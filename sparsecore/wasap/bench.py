"""Measurements of the parallel algorithm: against the sequential trainer, its lock, its messages.

All ranks call these functions; while the sequential trainer runs on rank 0, the others sleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.wasap.mpi import MPI, first_ranks
from sparsecore.wasap.phases import run
from sparsecore.wasap.place import Layout
from sparsecore.wasap.ranks import Ranks
from sparsecore.wasap.window import Window


def against_sequential(
    data: Dataset,
    config: TrainConfig,
    seeds: Sequence[int],
    train_alone: Callable[[int], dict[str, Any]],
) -> dict[str, Any] | None:
    """Train sequentially with one thread and with all ranks, in turns; same epochs, same seeds.

    Parameters
    ----------
    data : Dataset
    config : TrainConfig
    seeds : sequence of int
    train_alone : callable
        ``train_alone(seed)`` trains sequentially and returns the result.

    Returns
    -------
    dict or None
        On rank 0: "rounds", one a seed, with the samples per second ("sequential", "parallel"),
        their "ratio", the test accuracies, and "shares": on what the ranks spend phase 1, as shares
        of its time; and "ratio" {"median", "min", "max"}, "accuracy_difference" (mean, in points).
    """
    ranks = Ranks()
    rounds = []
    for seed in seeds:
        alone = train_alone(seed) if ranks.rank == 0 else None
        ranks.barrier()
        _, together = run(data, config, seed=seed)
        if alone is None or together is None:
            continue
        own = together["parallel"]["ranks"]
        phase1 = sum(rank["seconds"]["phase1"] for rank in own)
        rounds.append(
            {
                "seed": seed,
                "sequential": alone["samples_per_second"],
                "parallel": together["samples_per_second"],
                "ratio": together["samples_per_second"] / alone["samples_per_second"],
                "sequential_accuracy": alone["test_accuracy"],
                "parallel_accuracy": together["test_accuracy"],
                "shares": {
                    name: sum(rank["seconds"][name] for rank in own) / phase1
                    for name in ("gradient", "lock", "update")
                },
            }
        )
    ranks.close()
    if ranks.rank:
        return None
    ratios = [entry["ratio"] for entry in rounds]
    difference = [e["parallel_accuracy"] - e["sequential_accuracy"] for e in rounds]
    return {
        "workers": ranks.size,
        "rounds": rounds,
        "ratio": {"median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios)},
        "accuracy_difference": 100 * float(np.mean(difference)),
    }


def locks(updates: int = 300, compute_seconds: float = 0.002) -> dict[str, Any] | None:
    """Time the server's lock and MPI's own around the same work: compute, lock, sweep, unlock.

    Parameters
    ----------
    updates : int
        Per rank.
    compute_seconds : float
        What a rank computes between two updates.

    Returns
    -------
    dict or None
        On rank 0, for "compare-and-swap, napping" and "MPI_Win_lock": "updates_per_second" of all
        ranks together, and "wait_us" {"median", "p90"} of rank 0.
    """
    ranks = Ranks()
    window = Window(ranks, Layout((1, 130_000), 0, ranks.size, 0, 0, 1))
    plain = MPI.Win.Allocate(64 if ranks.rank == 0 else 0, 1, comm=ranks.comm)
    params = window.fetch("params")

    def with_window() -> float:
        asked = time.perf_counter()
        with window.locked():
            begun = time.perf_counter()
            params[:] += 1
        return begun - asked

    def with_mpi() -> float:
        asked = time.perf_counter()
        plain.Lock(0, MPI.LOCK_EXCLUSIVE)
        begun = time.perf_counter()
        params[:] += 1
        plain.Unlock(0)
        return begun - asked

    found = {}
    for name, update in (("compare-and-swap, napping", with_window), ("MPI_Win_lock", with_mpi)):
        ranks.barrier()
        start, waits = time.perf_counter(), []
        for _ in range(updates):
            end = time.perf_counter() + compute_seconds
            while time.perf_counter() < end:
                pass
            waits.append(1e6 * update())
        ranks.barrier()
        found[name] = {
            "updates_per_second": updates * ranks.size / (time.perf_counter() - start),
            "wait_us": {
                "median": float(np.median(waits)),
                "p90": float(np.percentile(waits, 90)),
            },
        }
    plain.Free()
    window.free()
    ranks.close()
    return None if ranks.rank else found


def messages(n_bytes: int, repeats: int = 200) -> dict[str, float]:
    """Time messages that two ranks send each other at the same time; the first two ranks call this.

    Parameters
    ----------
    n_bytes : int
        Size of the large ones.
    repeats : int

    Returns
    -------
    dict
        "seconds" of a message of 8 bytes, median, and "bytes_per_second" of a large one, each way.
    """
    medians = []
    with first_ranks(2) as comm:
        for size in (8, n_bytes):
            out, into, times = np.zeros(size, np.uint8), np.empty(size, np.uint8), []
            for _ in range(repeats):
                comm.Barrier()
                begun = time.perf_counter()
                comm.Sendrecv(out, 1 - comm.rank, recvbuf=into)
                times.append(time.perf_counter() - begun)
            medians.append(float(np.median(times)))
    small, large = medians
    return {"seconds": small, "bytes_per_second": n_bytes / max(large - small, 1e-9)}
