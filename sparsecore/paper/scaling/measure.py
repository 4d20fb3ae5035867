"""F-scaling: speed-up per worker as measured, and what the simulation is calibrated with.

One JSON file per profile: samples per second of the sequential trainer and of both parallel ones,
with one worker and more, up to the cores there are; and the times of the steps that a parallel run
is made of. `simulate` goes on from there, whenever a page is made. Drawing is for
`scaling_figures`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import cluster, datasets, experiment, train
from sparsecore.compiled.team import cpu_count
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.paper import results
from sparsecore.paper.measurements import Measurements, used_by_others
from sparsecore.paper.scaling.simulate import ALGORITHMS, Calibration, Outcome, simulate
from sparsecore.paper.training.conditions import current_profile
from sparsecore.provenance import provenance
from sparsecore.settings import setting
from sparsecore.wasap.place import Layout, Place
from sparsecore.wasap.server import FIELDS, ParameterServer
from sparsecore.wasap.worker import Worker

Result = dict[str, Any]

STUDY = "F-scaling"
DATASET = "fashion-mnist"
_QUANTILES = 201
_KINDS = ("gradient", "push", "retain", "adopt", "evolve")
_EVERY = 20  # pushes between two evolutions, while steps are timed


@dataclass(frozen=True)
class Effort:
    """How much a profile measures.

    Attributes
    ----------
    epochs : int
    rows : int or None
        Of the training set; None: all.
    seeds : tuple of int
        Each is a round of all runs.
    workers : int
        The most workers, if there are as many cores.
    steps : int
        Gradients whose times are taken one by one.
    """

    epochs: int
    rows: int | None
    seeds: tuple[int, ...]
    workers: int
    steps: int


EFFORTS = {
    "quick": Effort(2, 10_000, (0, 1), 4, 400),
    "paper": Effort(8, None, (0, 1, 2, 3, 4), 64, 2_000),
}


@dataclass(frozen=True)
class Scaling:
    """The measurements of the page.

    Attributes
    ----------
    profile : str
        Of this build.
    here : dict or None
        Measured by it; None where the data or a cluster cannot be had.
    recorded : dict or None
        Of the recorded `paper` profile; None if there is none, or this build is of that profile.
    """

    profile: str
    here: Result | None
    recorded: Result | None = None

    def versions(self) -> list[tuple[str, Result]]:
        """Return what there is, the recorded one first, each with a title."""
        title = "recorded" if self.profile == "paper" else "this build"
        both = (("recorded", self.recorded), (title, self.here))
        return [(name, result) for name, result in both if result is not None]

    def calibration(self) -> Calibration:
        """Return what this build's measurements give the simulation, or else the recorded ones."""
        return calibrate(self.versions()[-1][1])

    def __repr__(self) -> str:
        there = self.versions()[-1][1]["runs"]
        runs = ", ".join(f"{name} {sorted(map(int, k))}" for name, k in there.items())
        return f"<Scaling {self.profile}: workers {runs}>"


# --- run or load ---------------------------------------------------------------------------------


def _code_sha256() -> str:
    """Return a digest of what is timed and of what times it; the simulation is made anew anyway."""
    timed = results.code_sha256("sparsecore.wasap.phases", "sparsecore.experiment")
    own = results.essence(Path(__file__).read_text())
    return hashlib.sha256(f"{timed}\0{own}".encode()).hexdigest()


FILES = Measurements(STUDY, _code_sha256, lambda profile: [_NAME])
_NAME = "measured"


def load(profile: str | None = None) -> Scaling:
    """Return the measurements; take them if they are missing, stale or of another machine.

    Parameters
    ----------
    profile : {"quick", "paper"}, optional
        See `conditions.current_profile`.

    Raises
    ------
    ClusterError
        If a cluster is needed and cannot be had, and nothing is recorded.
    DataNotAvailable
        If the data cannot be had, and nothing is recorded.
    ValueError
        If there is no such profile.
    """
    profile = current_profile(profile)
    recorded = None if profile == "paper" else FILES.read(_NAME, "paper")
    try:
        return Scaling(profile, _measured(profile), recorded)
    except (cluster.ClusterError, datasets.DataNotAvailable):
        if recorded is None:
            raise
        return Scaling(profile, None, recorded)


def _measured(profile: str) -> Result:
    found = FILES.valid(_NAME, profile)
    if found is None:
        load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        data = datasets.load(DATASET)
        found = measure(EFFORTS[profile], data, setting(DATASET).config)
        about = {**provenance(1, data.content_hash), "load_before": load_before}
        found = FILES.write(_NAME, profile, {**found, "provenance": about})
    return found


# --- measuring -----------------------------------------------------------------------------------


def counts(most: int) -> list[int]:
    """Return the numbers of workers to be measured: powers of two up to `most`, and that."""
    powers = [2**i for i in range(most.bit_length()) if 2**i <= most]
    return sorted({*powers, most})


def measure(effort: Effort, data: Dataset, config: TrainConfig) -> Result:
    """Train sequentially and in parallel, in turns, and time the steps of a parallel run.

    All epochs are phase 1, with the topology's evolution between them.

    Returns
    -------
    dict
        "n_train", "batch_size", "epochs"; "others": CPUs that other processes used before each
        round; "runs": per algorithm and number of workers (a text),
        one dict per seed; "steps": see `time_steps`; "messages": see `wasap.bench.messages`.
    """
    config = config.with_values(epochs=effort.epochs)
    numbers = counts(max(2, min(cpu_count(), effort.workers)))
    runs: dict[str, dict[str, list[Result]]] = {"sequential": {"1": []}}
    runs |= {name: {str(k): [] for k in numbers} for name in ALGORITHMS}
    others: list[float] = []
    n_bytes = 4 * train.new_model(config, data.n_features, data.n_classes, 0).nnz
    with cluster.connect(numbers[-1]) as workers:
        jobs = workers.first(2).submit(_messages_on_engine, n_bytes)
        messages, _ = (job.get() for job in jobs)
        for seed in effort.seeds:
            others.append(used_by_others())  # now the workers sleep
            rows = data if effort.rows is None else data.limited(effort.rows, random_state=seed)
            alone = experiment.run(rows, config, seed=seed)[1]
            pace = alone["samples_per_second"]
            runs["sequential"]["1"].append({"seed": seed, "samples_per_second": pace})
            for k in numbers:
                for name in ALGORITHMS:
                    _, result = cluster.train(
                        workers.first(k), config, data.name,
                        algorithm=name, phase1=1.0, seed=seed, limit=effort.rows,
                    )  # fmt: skip
                    runs[name][str(k)].append(_told(result))
    return {
        "n_train": effort.rows or len(data.y_train),
        "batch_size": config.batch_size,
        "epochs": effort.epochs,
        "others": others,
        "runs": runs,
        "steps": time_steps(data, config, effort.steps),
        "messages": messages,
    }


def _messages_on_engine(n_bytes: int) -> Result:
    from sparsecore.wasap.bench import messages  # starts MPI, which this process has no use for

    return dict(messages(n_bytes))


def _told(result: Result) -> Result:
    """Return what of a parallel run's result is kept."""
    parallel = result["parallel"]
    stale = np.array(parallel["staleness_histogram"] or [1])
    return {
        "seed": result["seed"],
        "samples_per_second": result["samples_per_second"],
        "window": parallel["window"],
        "bytes_per_update": parallel["bytes_per_update"],
        "staleness": float(np.average(np.arange(len(stale)), weights=stale)),
        "ranks": [
            {name: rank[name] for name in ("updates", "samples", "seconds")}
            for rank in parallel["ranks"]
        ],
    }


def time_steps(data: Dataset, config: TrainConfig, n: int) -> Result:
    """Time what a parallel run does, step by step, in this process: two workers and a server.

    Parameters
    ----------
    data : Dataset
    config : TrainConfig
    n : int
        Gradients.

    Returns
    -------
    dict
        "gradient": quantiles, at equal distances from 0 to 1, of the seconds to compute one;
        seconds that a push holds the lock, median: "push", and how much longer to "retain" what a
        newer topology has left of a gradient, and to "evolve"; "adopt": what a worker then takes
        for itself; "reduce", "term": to add up gradients, and how much longer for every further
        worker; "n_params"; "n_gradients".
    """
    config = config.with_values(epochs=n)
    model = train.new_model(config, data.n_features, data.n_classes, 0)
    place = Place(Layout(model.sizes, model.nnz, 2, n + _EVERY, n, len(FIELDS)))
    server = ParameterServer(place, config, 0, _EVERY, n)
    server.publish(model)
    shards = [np.arange(rank, min(8_192, len(data.y_train)), 2) for rank in range(2)]
    workers = [
        Worker(rank, experiment.Shard(data, rows, config, 0, rank), *server.pull(), config, 0)
        for rank, rows in enumerate(shards)
    ]
    times: dict[str, list[float]] = {name: [] for name in _KINDS}
    for step in range(n + _EVERY):
        worker = workers[step % 2]
        version, begun = worker.version, time.perf_counter()
        gradient = worker.compute()
        computed = time.perf_counter()
        update = server.push(gradient, version, worker.model)
        assert update is not None
        worker.pushed(gradient, update)
        pushed = time.perf_counter()
        if step < _EVERY:
            continue  # compiles, and meets cold caches
        times["gradient"].append(computed - begun)
        old = version.topology != update.version.topology
        kind = "evolve" if update.epoch else "retain" if old else "push"
        times[kind].append(update.held)
        if kind == "retain":
            times["adopt"].append(pushed - computed - update.held)
    for worker in workers:
        worker.close()
    push = float(np.median(times["push"]))
    reduce, term = _time_reduction(len(model.params))
    return {
        "gradient": np.quantile(times["gradient"], np.linspace(0, 1, _QUANTILES)).tolist(),
        "push": push,
        **{name: max(0.0, float(np.median(times[name])) - push) for name in ("retain", "evolve")},
        "adopt": float(np.median(times["adopt"])),
        "reduce": reduce,
        "term": term,
        "n_params": len(model.params),
        "n_gradients": len(times["gradient"]),
    }


def _time_reduction(n: int) -> tuple[float, float]:
    """Time the sum of gradients as `Lockstep.take_step` makes it, of one long and of many short."""
    found = []
    for rows, size in ((16, n // 16), (512, 1)):
        received = np.ones((rows, size), np.float32)
        mean, term = np.empty(size, np.float32), np.empty(size, np.float32)
        times = []
        for _ in range(20):
            begun = time.perf_counter()
            np.multiply(received[0], np.float32(1), out=mean)
            for row in received[1:]:
                np.multiply(row, np.float32(1), out=term)
                mean += term
            times.append(time.perf_counter() - begun)
        found.append(float(np.median(times)))
    per_term = found[1] / 512
    return max(0.0, found[0] - 16 * per_term), per_term


# --- what follows from it ------------------------------------------------------------------------


def samples_per_second(result: Result, algorithm: str, workers: int = 1) -> np.ndarray:
    """Return the samples per second of all rounds."""
    runs = result["runs"][algorithm][str(workers)]
    return np.array([run["samples_per_second"] for run in runs])


def workers_of(result: Result, algorithm: str) -> list[int]:
    """Return the numbers of workers that were measured."""
    return sorted(int(k) for k in result["runs"][algorithm])


def speedups(result: Result, algorithm: str, workers: int) -> np.ndarray:
    """Return samples per second relative to the sequential trainer's, of each round."""
    sequential = samples_per_second(result, "sequential")
    return samples_per_second(result, algorithm, workers) / sequential


def spent(result: Result, algorithm: str, workers: int) -> dict[str, float]:
    """Return on what the workers spent phase 1, seconds per update of a worker.

    Returns
    -------
    dict
        "compute" (whatever is neither of the others), "lock" and "update"; medians over rounds of
        the means.
    """
    rounds: dict[str, list[float]] = {"compute": [], "lock": [], "update": []}
    for run in result["runs"][algorithm][str(workers)]:
        updates = sum(rank["updates"] for rank in run["ranks"])
        total = {
            name: sum(rank["seconds"][name] for rank in run["ranks"])
            for name in ("phase1", "evaluate", "checkpoint", "lock", "update")
        }
        rest = total["phase1"] - sum(s for name, s in total.items() if name != "phase1")
        for name, seconds in (("compute", rest), *((n, total[n]) for n in ("lock", "update"))):
            rounds[name].append(seconds / updates)
    return {name: float(np.median(values)) for name, values in rounds.items()}


def calibrate(result: Result) -> Calibration:
    """Return the simulation's numbers, from the runs of WASAP-SGD with one worker and the steps.

    Raises
    ------
    ValueError
        If they make no sense, for instance because the machine was busy with something else.
    """
    run, steps = result["runs"]["wasap"]["1"][0], result["steps"]
    mean = spent(result, "wasap", 1)
    per_epoch = -(-result["n_train"] // result["batch_size"])
    # No evolution follows the last epoch.
    evolutions = (result["epochs"] - 1) / (result["epochs"] * per_epoch)
    return Calibration(
        compute=mean["compute"],
        lock=mean["lock"],
        update=mean["update"] - evolutions * steps["evolve"],
        evolve=steps["evolve"],
        retain=steps["retain"],
        adopt=steps["adopt"],
        reduce=steps["reduce"],
        term=steps["term"],
        message=result["messages"]["seconds"],
        bandwidth=result["messages"]["bytes_per_second"],
        n_params=steps["n_params"],
        bytes_per_update=run["bytes_per_update"],
        samples_per_update=result["n_train"] / per_epoch,
        updates_per_epoch=per_epoch,
        jitter=tuple((np.array(steps["gradient"]) / np.mean(steps["gradient"])).tolist()),
    )


def check(result: Result) -> list[tuple[str, int, Outcome]]:
    """Simulate what was measured: per algorithm and number of workers."""
    calibration = calibrate(result)
    return [
        (name, k, simulate(calibration, k, name))
        for name in ALGORITHMS
        for k in workers_of(result, name)
    ]


def busy(result: Result, algorithm: str, workers: int) -> Calibration:
    """Return the calibration with the time of a gradient beside `workers - 1` busy cores."""
    return replace(calibrate(result), compute=spent(result, algorithm, workers)["compute"])


def powers(most: int = 1024) -> Sequence[int]:
    """Return the numbers of workers to be simulated."""
    return tuple(2**i for i in range(most.bit_length()) if 2**i <= most)
