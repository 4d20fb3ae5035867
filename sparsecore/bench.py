"""Timing: the package's one stopwatch, and training steps on random data (the command `bench`)."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sparsecore import seeds
from sparsecore.compiled.engine import metrics
from sparsecore.compiled.jit import jit
from sparsecore.compiled.team import Team, barrier
from sparsecore.config import TrainConfig
from sparsecore.provenance import peak_bytes, provenance
from sparsecore.seeds import Purpose
from sparsecore.train import new_network, sgd_rule

_STEPS_PER_CALL = 100  # as in the trainer, a call is at least a tenth of a second's work
_BATCHES = 32  # of random data
_WARM_UP_CALLS = 2
_REPEATS = 5
_MEETINGS = 20_000


def timed(work: Callable[[], object], repeats: int = 1) -> np.ndarray:
    """Return the seconds that each of `repeats` calls takes; the caller has warmed up `work`."""
    seconds = np.empty(repeats)
    for k in range(repeats):
        start = time.perf_counter()
        work()
        seconds[k] = time.perf_counter() - start
    return seconds


def spread(values: Any) -> dict[str, float]:
    """Return median, smallest ("low") and largest ("high") of some numbers."""
    kinds: dict[str, Callable[..., Any]] = {"median": np.median, "low": np.min, "high": np.max}
    return {name: float(kind(values)) for name, kind in kinds.items()}


def bench(
    sizes: tuple[int, ...], config: TrainConfig, threads: int = 1, seed: int = 0, *,
    steps: int = 500,
) -> dict[str, Any]:  # fmt: skip
    """Time training steps, evolution and prediction of a network on random data."""
    # Steps are timed over calls of 100. A step is 6 operations per connection and sample, 4 in the
    # first layer, whose input gradient is not needed.
    model, rng = new_network(sizes, config, seed), seeds.generator(seed, Purpose.SPLIT)
    model.start_momentum()
    batch_size = config.batch_size
    n_rows = batch_size * _BATCHES
    inputs = rng.standard_normal((n_rows, sizes[0]), np.float32)
    labels = rng.integers(sizes[-1], size=n_rows)
    rule = sgd_rule(config, seed)
    sums = metrics()
    with model.new_engine(batch_size, threads) as engine:

        def call(n_steps: int) -> None:
            rows = rng.integers(n_rows, size=n_steps * batch_size)
            engine.train(rule, inputs, labels, rows, batch_size, 0, sums)

        def median_ms(work: Callable[[], object]) -> float:
            return 1e3 * float(np.median(timed(work, 1 + _REPEATS)[1:]))

        timed(partial(call, _STEPS_PER_CALL), _WARM_UP_CALLS)
        calls = [min(_STEPS_PER_CALL, steps - n) for n in range(0, steps, _STEPS_PER_CALL)]
        times = 1e3 * np.array([timed(partial(call, n))[0] / n for n in calls])
        predict = median_ms(partial(model.decision_function, inputs[:batch_size], threads))
        evolve = median_ms(partial(model.evolve, config.zeta, rng))
    first = model[0].nnz
    flops = batch_size * (6 * (model.nnz - first) + 4 * first)
    median = float(np.median(times))
    return {
        "config": {
            "dims": list(sizes), "density": config.density, "batch": batch_size,
            "epsilon": config.epsilon if config.density is None else None, "threads": threads,
            "steps": steps, "activation": model.activation, "dropout": config.dropout,
        },
        "seed": seed,
        "ms_per_step": {
            "median": median, "min": float(times.min()), "p90": float(np.percentile(times, 90)),
        },
        "gflops": flops / median / 1e6, "nnz": model.nnz, "evolution_ms": evolve,
        "predict_ms": predict, "meeting_us": meeting_seconds(threads) * 1e6,
        "peak_rss_mb": round(peak_bytes() / 2**20, 1), "provenance": provenance(threads, None),
    }  # fmt: skip


@jit()
def _meet(member, size, sync, n):
    for _ in range(n):
        barrier(sync, size)


def meeting_seconds(threads: int) -> float:
    """Return the seconds that threads without other work need to meet at a barrier."""
    # On one machine 0.1 microseconds where their cores share a cache, 0.5 where they do not.
    with Team(threads) as team:
        team.walk(_meet, 1)  # compiles
        times = timed(lambda: team.walk(_meet, _MEETINGS), _REPEATS)
    return float(np.median(times)) / _MEETINGS
