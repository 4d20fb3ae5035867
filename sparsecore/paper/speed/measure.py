"""F-speed: the measurements behind the page on speed, and how one comes by them: run or load.

Five parts: the contest with the peers, whole epochs and where their time goes, a sweep over density
against dense BLAS, a roofline of the kernels under this machine's measured ceilings, and growing
width at constant epsilon. Each part is one result. Drawing is for `figures`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from sparsecore import seeds
from sparsecore.compiled.team import cpu_count
from sparsecore.config import TrainConfig
from sparsecore.paper.speed.contest import compare, spread, stopwatch, warm_up
from sparsecore.paper.speed.peers import PEERS, Problem, SparseCore, absent
from sparsecore.paper.speed.peers import Trainer as Peer
from sparsecore.paper.speed.roofline import Report, Result, products_share, timed
from sparsecore.paper.speed.roofline import measure as measure_roofline
from sparsecore.paper.store import Entry, Versions, current_profile, versions
from sparsecore.progress import bar
from sparsecore.provenance import busy_cpus, provenance
from sparsecore.seeds import Purpose
from sparsecore.train import Trainer, new_model

STUDY = "F-speed"
#: The networks of the study's image data sets.
SHAPES: dict[str, tuple[int, ...]] = {
    "fashion-mnist": (784, 1000, 1000, 1000, 10),
    "cifar10": (3072, 4000, 1000, 4000, 10),
}
EPSILON = 20.0
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Effort:
    """How much a profile measures.

    Attributes
    ----------
    rounds : int
    seconds : float
        Length of one peer's turn in a round.
    threads : tuple of int
        Thread counts of the contest.
    widths : tuple of int
        Neurons per hidden layer.
    patience : float
        Seconds in each contest to wait for other processes to leave CPUs free.
    """

    rounds: int
    seconds: float
    threads: tuple[int, ...]
    widths: tuple[int, ...]
    patience: float = 0.0


EFFORTS = {
    "quick": Effort(3, 0.12, (1,), (1_000, 3_000, 10_000, 30_000)),
    "paper": Effort(
        7, 0.6, (1, 2), (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000), 240.0
    ),
}


# --- the contest ---------------------------------------------------------------------------------


def contest(effort: Effort, report: Report) -> Result:
    """Time all peers on both shapes, for each number of threads that the machine has.

    Returns
    -------
    dict
        "contests": what `compare` returns, each with its "shape".
    """
    found = []
    for shape, sizes in SHAPES.items():
        for threads in effort.threads:
            if threads > cpu_count():
                continue
            problem = Problem(sizes, epsilon=EPSILON, threads=threads)
            found.append(
                {
                    "shape": shape,
                    **compare(
                        problem,
                        rounds=effort.rounds,
                        seconds=effort.seconds,
                        patience=effort.patience,
                        progress=report,
                    ),
                }
            )
    return {"contests": found}


# --- whole epochs --------------------------------------------------------------------------------


def epochs(effort: Effort, report: Report, rows: tuple[int, int] = (60_000, 10_000)) -> Result:
    """Time epochs in full, and their products alone: steps on one batch, without dropout.

    Random data of Fashion-MNIST's size and network, one thread; `rows` for training and test.

    Returns
    -------
    dict
        "rows"; "seconds" {"median", "low", "high"} per epoch of "products" (forward, loss, backward
        and update), "batches" (fetching them, and dropout),
        "evaluation" and "evolution"; "overhead": the same of the share of all but the products.
    """
    config = TrainConfig()
    rng = np.random.default_rng(0)
    X = rng.random((sum(rows), SHAPES["fashion-mnist"][0]), np.float32)
    y = rng.integers(10, size=sum(rows))
    X_train, y_train, X_test, y_test = X[: rows[0]], y[: rows[0]], X[rows[0] :], y[rows[0] :]
    model = new_model(config, X.shape[1], 10, seed=0)
    times: dict[str, list[float]] = {}
    with Trainer(model, config, seed=0) as trainer:
        for number in range(effort.rounds):
            report(f"epoch {number + 1} of {effort.rounds}")
            before = dict(trainer.seconds)
            trainer.run_epoch(X_train, y_train)
            trainer.evaluate(X_test, y_test)
            trainer.change_topology()
            spent = {name: trainer.seconds[name] - before[name] for name in before}
            share = float(np.median(products_share(model, X_train, y_train, config, rng)))
            for name, seconds in (
                ("products", share * spent["train"]),
                ("batches", (1 - share) * spent["train"]),
                ("evaluation", spent["evaluate"]),
                ("evolution", spent["evolve"]),
            ):
                times.setdefault(name, []).append(seconds)
    totals = np.sum(list(times.values()), axis=0)
    return {
        "rows": list(rows),
        "seconds": {name: spread(seconds) for name, seconds in times.items()},
        "overhead": spread(list(1 - np.array(times["products"]) / totals)),
    }


# --- density -------------------------------------------------------------------------------------


def density_sweep(
    effort: Effort,
    report: Report,
    sizes: tuple[int, ...] = SHAPES["fashion-mnist"],
    densities: Sequence[float] = DENSITIES,
) -> Result:
    """Time sparsecore at growing density, and the dense peers, in interleaved rounds, one thread.

    Returns
    -------
    dict
        "sizes"; "points": "density" (share of connections that exist), "nnz", "ms" {"median",
        "low", "high"} (milliseconds per step, over rounds); "dense": the same "ms" per dense peer
        that is installed; "crossover": the density at which the fastest of them takes as long as
        sparsecore, interpolated between points in the logarithms; None if there is none.
    """
    problems = {d: Problem(sizes, density=d) for d in densities}
    trainers: dict[Any, Peer] = {}
    dense = [key for key in ("numpy-dense", "torch-dense") if not absent(key, Problem(sizes))]
    with threadpool_limits(1):
        for density, problem in problems.items():
            trainers[density] = SparseCore(problem)
        for key in dense:
            trainers[key] = PEERS[key].trainer(Problem(sizes, density=min(densities)))
        report("warming up")
        steps = {name: warm_up(trainer, effort.seconds) for name, trainer in trainers.items()}
        times: dict[Any, list[float]] = {name: [] for name in trainers}
        for number in range(effort.rounds):
            report(f"round {number + 1} of {effort.rounds}")
            for name, trainer in trainers.items():
                times[name].append(stopwatch(trainer, effort.seconds, steps[name])["ms"])
        for trainer in trainers.values():
            trainer.close()
    points: list[Result] = [
        {
            "density": problem.model.density,
            "nnz": problem.model.nnz,
            "ms": spread(times[density]),
        }
        for density, problem in problems.items()
    ]
    fastest = min(np.median(times[key]) for key in dense)
    return {
        "sizes": list(sizes),
        "points": points,
        "dense": {key: spread(times[key]) for key in dense},
        "crossover": crossover(
            [p["density"] for p in points], [p["ms"]["median"] for p in points], float(fastest)
        ),
    }


def crossover(densities: Sequence[float], ms: Sequence[float], level: float) -> float | None:
    """Return the density at which the time first reaches `level`, or None if it never does."""
    points = list(zip(np.log(densities), np.log(ms), strict=True))
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 < np.log(level) <= y1:
            return float(np.exp(x0 + (np.log(level) - y0) / (y1 - y0) * (x1 - x0)))
    return None


# --- roofline ------------------------------------------------------------------------------------


def roofline(effort: Effort, report: Report) -> Result:
    """Place both shapes' kernels under the machine's ceilings; see `roofline.measure`."""
    return measure_roofline(SHAPES, EPSILON, 5 * effort.rounds, report)


# --- width ---------------------------------------------------------------------------------------


def width_sweep(effort: Effort, report: Report) -> Result:
    """Time networks of 784-n-n-10 neurons at constant epsilon, with one thread, batch 128.

    Returns
    -------
    dict
        "points": "width" n, "nnz", "density", "ms" per step {"median", "low", "high"}, "make_s" and
        "evolve_s" (seconds to make the network and to evolve its topology once), "mib" (of
        parameters, velocity and structure), "bytes_per_connection", "dense_mib" (what the weights
        alone would take if they were dense); "epsilon"; "batch".
    """
    points = []
    for width in effort.widths:
        report(f"{width:,} neurons per layer")
        points.append(_one_width(width, effort))
        gc.collect()
    return {"points": points, "epsilon": EPSILON, "batch": 128}


def _one_width(width: int, effort: Effort) -> Result:
    sizes = (784, width, width, 10)
    problem = Problem(sizes, epsilon=EPSILON)
    start = time.perf_counter()
    model = problem.model
    make = time.perf_counter() - start
    trainer = SparseCore(problem)
    steps = warm_up(trainer, effort.seconds)
    ms = [stopwatch(trainer, effort.seconds, steps)["ms"] for _ in range(effort.rounds)]
    trainer.close()
    rng = seeds.generator(0, Purpose.EVOLUTION)
    model.evolve(0.3, rng)
    evolve = timed(lambda: model.evolve(0.3, rng))
    return {
        "width": width,
        "nnz": model.nnz,
        "density": model.density,
        "ms": spread(ms),
        "make_s": make,
        "evolve_s": evolve,
        "mib": model.nbytes / 2**20,
        "bytes_per_connection": model.nbytes / model.nnz,
        "dense_mib": sum(a * b for a, b in pairwise(sizes)) * 4 / 2**20,
    }


# --- run or load ---------------------------------------------------------------------------------

SCHEMAS: dict[str, dict[str, Any]] = {
    "peers": {"contests": [{"shape": str, "peers": dict, "problem": dict}]},
    "epochs": {"rows": list, "seconds": dict, "overhead": dict},
    "density": {"sizes": list, "points": [{"density": (int, float), "ms": dict}], "dense": dict},
    "roofline": {"gflops": (int, float), "bandwidth": dict, "kernels": list},
    "width": {"points": [{"width": int, "ms": dict}]},
}
PARTS: dict[str, Callable[[Effort, Report], Result]] = {
    "peers": contest,
    "epochs": epochs,
    "density": density_sweep,
    "roofline": roofline,
    "width": width_sweep,
}


def entry(part: str, profile: str) -> Entry:
    """Return where a part's result is kept."""
    return Entry(STUDY, part, profile, lambda result: SCHEMAS[part])


def entries(profile: str) -> list[Entry]:
    """Return the results that a profile is made of."""
    return [entry(part, profile) for part in PARTS]


def load(profile: str | None = None, *, progress: bool = True) -> dict[str, Versions[Result]]:
    """Return both versions of each part; measure what this build lacks."""
    profile = current_profile(profile)
    effort, found = EFFORTS[profile], {}
    form = "{desc} ({n}/{total} parts)"
    with bar(len(PARTS), bar_format=form, hidden=not progress) as shown:
        for part in PARTS:
            found[part] = versions(
                partial(entry, part), partial(_measure, part, effort, shown), profile
            )
            shown.update()
    return found


def _measure(part: str, effort: Effort, shown: Any) -> Result:
    busy = busy_cpus()
    found = PARTS[part](effort, lambda text: shown.set_description_str(f"{part}: {text}"))
    return {**found, "provenance": {**provenance(1, None), "others": busy}}
