"""Sequential and parallel training in turns, for F-scaling and ``bench --parallel``."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from sparsecore.bench import spread
from sparsecore.provenance import busy_cpus

Result = dict[str, Any]
Train = Callable[[int], Result]


def in_turns(
    seeds: Iterable[int], alone: Train, together: Mapping[tuple[str, int], Train]
) -> Result:
    """Train a round per seed: ``alone(seed)``, then each ``together[algorithm, workers](seed)``."""
    others: list[float] = []
    runs: dict[str, dict[str, list[Result]]] = {}
    for seed in seeds:
        others.append(busy_cpus())  # while the workers are idle
        for (name, k), train in {("sequential", 1): alone, **together}.items():
            found = runs.setdefault(name, {}).setdefault(str(k), [])
            found.append(_kept(train(seed)))
    return {"others": others, "runs": runs}


def _kept(result: Result) -> Result:
    """Return the part of a run's result that is kept."""
    found = {name: result[name] for name in ("seed", "samples_per_second", "test_accuracy")}
    if (parallel := result.get("parallel")) is None:
        return found
    names = "updates", "seconds"
    ranks = [{name: rank[name] for name in names} for rank in parallel["ranks"]]
    return {**found, "bytes_per_update": parallel["bytes_per_update"], "ranks": ranks}


def workers_of(result: Result, algorithm: str) -> list[int]:
    """Return the numbers of workers that were measured."""
    return sorted(int(k) for k in result["runs"][algorithm])


def samples_per_second(result: Result, algorithm: str, workers: int = 1) -> np.ndarray:
    """Return the samples per second of all rounds."""
    runs = result["runs"][algorithm][str(workers)]
    return np.array([run["samples_per_second"] for run in runs])


def speedups(result: Result, algorithm: str, workers: int) -> np.ndarray:
    """Return samples per second relative to the sequential trainer's, of each round."""
    sequential = samples_per_second(result, "sequential")
    return samples_per_second(result, algorithm, workers) / sequential


def total_seconds(run: Result, name: str) -> float:
    """Return the seconds that all ranks of a run spent on something, such as "lock"."""
    return float(sum(rank["seconds"][name] for rank in run["ranks"]))


def spent(result: Result, algorithm: str, workers: int) -> dict[str, float]:
    """Return a worker's seconds per update in phase 1, medians over rounds; tests are left out."""
    rounds, names = [], ("phase1", "evaluate", "checkpoint", "lock", "update")
    for run in result["runs"][algorithm][str(workers)]:
        phase1, evaluate, checkpoint, lock, update = (total_seconds(run, name) for name in names)
        rest = phase1 - (evaluate + checkpoint) - lock - update
        updates = sum(rank["updates"] for rank in run["ranks"])
        rounds.append([seconds / updates for seconds in (rest, lock, update)])
    return dict(zip(("compute", "lock", "update"), np.median(rounds, axis=0).tolist(), strict=True))


def against_sequential(result: Result, algorithm: str, workers: int) -> Result:
    """Return the gain in speed and the change in accuracy, for each round and overall."""
    alone, together = result["runs"]["sequential"]["1"], result["runs"][algorithm][str(workers)]
    ratios, names = speedups(result, algorithm, workers), ("gradient", "lock", "update")
    rounds = [
        {
            "seed": one["seed"], "sequential": one["samples_per_second"],
            "parallel": all_["samples_per_second"], "ratio": float(ratio),
            "sequential_accuracy": one["test_accuracy"], "parallel_accuracy": all_["test_accuracy"],
            "shares": {n: total_seconds(all_, n) / total_seconds(all_, "phase1") for n in names},
        }
        for one, all_, ratio in zip(alone, together, ratios, strict=True)
    ]  # fmt: skip
    difference = [r["parallel_accuracy"] - r["sequential_accuracy"] for r in rounds]
    middle, low, high = spread(ratios).values()
    return {
        "workers": workers, "others": result["others"], "rounds": rounds,
        "ratio": {"median": middle, "min": low, "max": high},
        "accuracy_difference": 100 * float(np.mean(difference)),
    }  # fmt: skip
