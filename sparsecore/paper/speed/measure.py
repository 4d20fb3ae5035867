"""F-speed: the measurements behind the page on speed; each part is one result."""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from sparsecore.bench import spread, timed
from sparsecore.compiled.lanes import widest
from sparsecore.config import TrainConfig
from sparsecore.datasets import DataError
from sparsecore.limits import cpu_count
from sparsecore.paper.speed import roofline
from sparsecore.paper.speed.contest import PEERS, compare, stopwatch
from sparsecore.paper.speed.peers import Adapter, Problem, SparseCore
from sparsecore.paper.store import Entry, Parts, Result, measured
from sparsecore.paper.training.conditions import sizes
from sparsecore.settings import setting

STUDY = "F-speed"
#: The networks of the study's image data sets.
SHAPES = {name: sizes(name) for name in ("fashion-mnist", "cifar10")}
EPSILON = setting("fashion-mnist").config.epsilon
_CONFIG = TrainConfig(epsilon=EPSILON)
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Effort(NamedTuple):
    """How much a profile measures."""

    rounds: int
    seconds: float  # of one peer's turn in a round
    threads: tuple[int, ...]  # numbers of threads of the contest
    widths: tuple[int, ...]  # neurons per hidden layer


_WIDTHS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
EFFORTS = {"quick": Effort(3, 0.12, (1,), _WIDTHS[:3]), "paper": Effort(7, 0.6, (1, 2), _WIDTHS)}


def contest(effort: Effort) -> Result:
    """Time all peers on both shapes, for each number of threads that the machine has."""
    time = partial(compare, rounds=effort.rounds, seconds=effort.seconds)
    found = [
        {"shape": shape, **time(Problem(dims, _CONFIG, threads))}
        for shape, dims in SHAPES.items()
        for threads in effort.threads
        if threads <= cpu_count()
    ]
    return {"contests": found}


def density_sweep(
    effort: Effort, sizes: tuple[int, ...] = SHAPES["fashion-mnist"],
    densities: Sequence[float] = DENSITIES,
) -> Result:  # fmt: skip
    """Time sparsecore at growing density, and the dense peers, in turns, with one thread."""
    problems = {d: Problem(sizes, TrainConfig(density=d)) for d in densities}
    least = problems[min(densities)]
    dense = [key for key in ("blas-dense", "torch-dense") if not PEERS[key].absent(least)]
    with threadpool_limits(1):
        trainers: dict[Any, Adapter] = {d: SparseCore(problem) for d, problem in problems.items()}
        trainers |= {key: PEERS[key](least) for key in dense}
        ms = _in_rounds(trainers, effort)
    models = {d: problem.model for d, problem in problems.items()}
    points = [{"density": m.density, "nnz": m.nnz, "ms": ms[d]} for d, m in models.items()]
    fastest = min(ms[key]["median"] for key in dense)
    return {
        "sizes": list(sizes), "points": points, "dense": {key: ms[key] for key in dense},
        "crossover": crossover(points, fastest),
    }  # fmt: skip


def _in_rounds(trainers: dict[Any, Adapter], effort: Effort) -> dict[Any, Result]:
    """Time all trainers in turns, milliseconds per step, and close them."""
    turns = {name: stopwatch(trainer, effort.seconds) for name, trainer in trainers.items()}
    rounds = [{name: turn()["ms"] for name, turn in turns.items()} for _ in range(effort.rounds)]
    for trainer in trainers.values():
        trainer.close()
    return {name: spread([ms[name] for ms in rounds]) for name in turns}


def crossover(points: Sequence[Result], level: float) -> float | None:
    """Return the density where the time first reaches `level`, log-interpolated, or None."""
    x, y = np.log([(point["density"], point["ms"]["median"]) for point in points]).T
    if not y[0] < np.log(level) <= y.max():
        return None
    return float(np.exp(np.interp(np.log(level), np.maximum.accumulate(y), x)))


def width_sweep(effort: Effort) -> Result:
    """Time networks of 784-n-n-10 neurons at constant epsilon, with one thread, batch 128."""
    points = []
    for width in effort.widths:
        problem = Problem((784, width, width, 10), _CONFIG)
        [make] = timed(partial(getattr, problem, "model"))  # the first access makes it
        model, found = problem.model, _in_rounds({"ms": SparseCore(problem)}, effort)
        points.append({
            "width": width, "nnz": model.nnz, "density": model.density, **found,
            "make_s": float(make), "mib": model.nbytes / 2**20,
            "bytes_per_connection": model.nbytes / model.nnz,
            "dense_mib": sum(a * b for a, b in pairwise(problem.sizes)) * 4 / 2**20,
        })  # fmt: skip
        del problem, model
        gc.collect()
    return {"points": points, "epsilon": EPSILON, "batch": 128}


def _contest_avx2(effort: Effort) -> Result:
    if widest() == 128:
        raise DataError("it needs a CPU without AVX-512; measure on one, and copy the result")
    return contest(effort)


#: The measured parts.
PARTS: dict[str, Callable[[Effort], Result]] = {
    "peers": contest,
    "peers-avx2": _contest_avx2,
    "density": density_sweep,
    "roofline": lambda effort: roofline.measure(SHAPES, EPSILON, 5 * effort.rounds),
    "width": width_sweep,
}


def _parts(profile: str) -> Parts:
    return {
        name: (Entry(STUDY, name, profile), partial(measure, EFFORTS[profile]))
        for name, measure in PARTS.items()
        if profile == "paper" or name != "peers-avx2"
    }


entries, recorded, load = measured(_parts)
