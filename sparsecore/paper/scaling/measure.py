"""F-scaling: measured speedup, and the measurements that calibrate the simulation."""

import time
from collections import defaultdict
from functools import partial
from typing import NamedTuple

import numpy as np

from sparsecore import cluster, datasets, experiment, train
from sparsecore.bench import timed
from sparsecore.config import TrainConfig
from sparsecore.limits import cpu_count
from sparsecore.paper.scaling.rounds import in_turns, spent
from sparsecore.paper.scaling.simulate import Calibration
from sparsecore.paper.store import Entry, Parts, Result, measured, only
from sparsecore.paper.training import on_cluster
from sparsecore.provenance import provenance
from sparsecore.settings import setting
from sparsecore.wasap.plan import ALGORITHMS, Plan
from sparsecore.wasap.server import ParameterServer, Place
from sparsecore.wasap.worker import Worker

STUDY = "F-scaling"
DATASET = "fashion-mnist"
_QUANTILES = 201
_MESSAGES = 200  # of each size
_EVERY = 20  # pushes between two evolutions, while steps are timed


class Effort(NamedTuple):
    """How much a profile measures."""

    epochs: int
    rows: int | None  # of the training set; None: all
    seeds: tuple[int, ...]  # each is a round of all runs
    workers: int  # at most, if there are as many cores
    steps: int  # gradients that are timed one by one


EFFORTS = {
    "quick": Effort(2, 6_000, (0, 1), 4, 400),
    "paper": Effort(8, None, (0, 1, 2, 3, 4), 64, 2_000),
}


def _parts(profile: str) -> Parts:
    effort = EFFORTS[profile]
    expected = {"epochs": effort.epochs, "batch_size": setting(DATASET).config.batch_size}
    expected |= {"n_train": effort.rows} if effort.rows else {}
    entry = Entry(STUDY, "measured", profile, lambda: expected)
    return {entry.name: (entry, partial(_measure, effort))}


entries, recorded, load = measured(_parts, only)


def counts(most: int) -> list[int]:
    """Return the numbers of workers to be measured: powers of two up to `most`, and `most`."""
    return sorted({*(2**i for i in range(most.bit_length())), most})


def _measure(effort: Effort) -> Result:
    """Train sequentially and in parallel (phase 1) in turns; time the steps of a parallel run."""
    data = datasets.load(DATASET)
    config = setting(DATASET).config.with_values(epochs=effort.epochs)
    numbers = counts(max(2, min(cpu_count(), effort.workers)))
    n_bytes = 4 * train.new_model(config, data.n_features, data.n_classes, 0).nnz

    def alone(seed: int) -> Result:
        return experiment.run(data.limited(effort.rows, seed), config, seed=seed)[1]

    def together(algorithm: str, k: int, seed: int) -> Result:
        plan, few = Plan(algorithm, phase1=1.0), workers.first(k)
        run = cluster.train(few, config, data.name, plan, seed=seed, limit=effort.rows)[1]
        return on_cluster.whole(run)

    runs = {(name, k): partial(together, name, k) for k in numbers for name in ALGORITHMS}
    with cluster.connect(numbers[-1]) as workers:
        jobs = workers.first(2).submit(_messages_on_engine, n_bytes)
        messages, _ = (job.get() for job in jobs)
        found = in_turns(effort.seeds, alone, runs)
    return {
        "n_train": effort.rows or len(data.y_train), "batch_size": config.batch_size,
        "epochs": effort.epochs, **found, "steps": time_steps(data, config, effort.steps),
        "messages": messages, "provenance": provenance(1, data.content_hash),
    }  # fmt: skip


def _messages_on_engine(n_bytes: int) -> Result:
    """Return a small message's "seconds", and "bytes_per_second" of `n_bytes`; medians."""
    from sparsecore.wasap.mpi import first_ranks  # starts MPI, which only engines need

    medians = []
    with first_ranks(2) as comm:
        for size in (8, n_bytes):
            out, into = np.zeros(size, np.uint8), np.empty(size, np.uint8)
            swap = partial(comm.Sendrecv, out, 1 - comm.rank, recvbuf=into)
            times: list[float] = []
            for _ in range(_MESSAGES):
                comm.Barrier()
                times.extend(timed(swap))
            medians.append(float(np.median(times)))
    small, large = medians
    return {"seconds": small, "bytes_per_second": n_bytes / max(large - small, 1e-9)}


def time_steps(data: datasets.Dataset, config: TrainConfig, n: int) -> Result:
    """Time what a parallel run does, step by step, in this process: two workers and a server."""
    config = config.with_values(epochs=n)
    model = train.new_model(config, data.n_features, data.n_classes, 0)
    place = Place(model.sizes, model.nnz, 2, n + _EVERY, n)
    server = ParameterServer(place, config, 0, _EVERY, n)
    server.publish(model)
    shards = [np.arange(rank, min(8_192, len(data.y_train)), 2) for rank in range(2)]
    workers = [
        Worker(rank, experiment.Shard(data, rows, config, 0, rank), server)
        for rank, rows in enumerate(shards)
    ]
    times: dict[str, list[float]] = defaultdict(list)
    for step in range(n + _EVERY):
        worker = workers[step % 2]
        version, begun = worker.version, time.perf_counter()
        gradient = worker.compute()
        computed = time.perf_counter()
        update = worker.push(gradient)
        assert update is not None
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
    median = {name: float(np.median(values)) for name, values in times.items()}
    return {
        "gradient": np.quantile(times["gradient"], np.linspace(0, 1, _QUANTILES)).tolist(),
        "push": median["push"],
        **{name: max(0.0, median[name] - median["push"]) for name in ("retain", "evolve")},
        "adopt": median["adopt"], **_time_reduction(len(model.params)),
        "n_params": len(model.params), "n_gradients": len(times["gradient"]),
    }  # fmt: skip


def _time_reduction(n: int) -> dict[str, float]:
    """Time how `Lockstep.take_step` adds up gradients: a few long ones, and many short ones."""

    def add_up(received: np.ndarray, mean: np.ndarray, term: np.ndarray) -> None:
        np.multiply(received[0], np.float32(1), out=mean)
        for row in received[1:]:
            np.multiply(row, np.float32(1), out=term)
            np.add(mean, term, out=mean)

    def seconds(rows: int, size: int) -> float:
        arrays = np.ones((rows, size), np.float32), *np.empty((2, size), np.float32)
        return float(np.median(timed(partial(add_up, *arrays), 20)))

    term = seconds(512, 1) / 512
    return {"reduce": max(0.0, seconds(16, n // 16) - 16 * term), "term": term}


def calibrate(result: Result) -> Calibration:
    """Return the simulation's inputs from measurements."""
    run, steps, mean = result["runs"]["wasap"]["1"][0], result["steps"], spent(result, "wasap", 1)
    per_epoch = -(-result["n_train"] // result["batch_size"])
    # No evolution follows the last epoch. Noise must not make an update's time negative.
    evolutions = (result["epochs"] - 1) / (result["epochs"] * per_epoch)
    taken = ("evolve", "retain", "adopt", "reduce", "term", "n_params")
    return Calibration(
        **{name: steps[name] for name in taken}, compute=mean["compute"], lock=mean["lock"],
        update=max(1e-9, mean["update"] - evolutions * steps["evolve"]),
        message=result["messages"]["seconds"],
        bandwidth=result["messages"]["bytes_per_second"], bytes_per_update=run["bytes_per_update"],
        samples_per_update=result["n_train"] / per_epoch, updates_per_epoch=per_epoch,
        jitter=tuple((np.array(steps["gradient"]) / np.mean(steps["gradient"])).tolist()),
    )  # fmt: skip
