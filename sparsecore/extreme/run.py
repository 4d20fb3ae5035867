"""One extreme run from plan to result: memory first, then the network, steps, evolution, a test.

A whole network and one that is split over ranks go through the same steps. Two statistical tests
show whether the network learns: a trend in the losses of the batches, each of which is new, and
held-out accuracy against chance.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, kendalltau

from sparsecore import progress as bars
from sparsecore import seeds
from sparsecore.checkpoint import check_resumed, to_resume
from sparsecore.config import integers
from sparsecore.datasets.generators import Clusters
from sparsecore.extreme import budget
from sparsecore.extreme.config import N_CLASSES, N_FEATURES, ExtremeConfig
from sparsecore.extreme.network import TiledMLP, read_checkpoint
from sparsecore.files import check_writable, previous
from sparsecore.functions import cross_entropy
from sparsecore.provenance import check_alike, code, peak_bytes, provenance
from sparsecore.seeds import Purpose

_LISTS = "losses", "step_seconds", "evolve_seconds"
_INFORMATIVE = 4  # one feature in so many
_PHASES = ("initialise", "train", "evolve", "evaluate", "checkpoint", "fingerprint")


class Stream:
    """The artificial data: two Gaussian clusters, as in scikit-learn's `make_classification`."""

    # Informative features lie `separation` deviations off their mean. A batch is drawn from its
    # own random stream and never kept, so a resumed run sees the same samples.
    def __init__(self, seed: int, separation: float, n_features: int = N_FEATURES) -> None:
        rng = seeds.generator(seed, Purpose.SPLIT)
        informative = max(1, n_features // _INFORMATIVE)
        self._seed = seed
        self._design = Clusters(n_features, N_CLASSES, informative, 1, separation, rng)
        moved = separation * self._design.signs
        self._mean = moved.mean(axis=0)
        self._sd = np.sqrt(1 + moved.var(axis=0))

    def batch(
        self, number: int, size: int, held_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return batch `number` to train on, or to test on; features have mean 0 and variance 1."""
        # Drawn in pairs: an odd batch would always have one more of the same class.
        rng = seeds.generator(self._seed, Purpose.SAMPLES, int(held_out), number)
        X, y = (array[:size] for array in self._design.draw(size + size % 2, rng))
        columns = self._design.columns
        X[:, columns] = (X[:, columns] - self._mean) / self._sd
        return X, y


def plan(config: ExtremeConfig, threads: int, comm: Any = None) -> budget.Budget:
    """Return the memory plan of `config` on `threads`, or of each rank of `comm`."""
    if comm is not None and config.zeta:
        expected = f"expected 0 for layers split over ranks, got {config.zeta}"
        raise ValueError(f"zeta: {expected}; their topology does not evolve")
    _compile(config, threads)  # the memory for compiling is in the plan
    ranks = None if comm is None else comm.size
    return budget.plan(config.sizes, config.epsilon, config.batch_size, threads, ranks)


def run(
    config: ExtremeConfig, *, seed: int = 0, threads: int = 1, comm: Any = None,
    memory_limit: int | None = None, checkpoint_path: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 25, resume: bool = False, progress: bool = False, announce: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a network on artificial data and test it.

    Parameters
    ----------
    config : ExtremeConfig
        With zeta 0 if `comm` is given.
    seed, threads : int
        `seed` and `config` determine the weights bit for bit on CPUs of the same lane width;
        `threads` is per rank.
    comm : mpi4py.MPI.Comm, optional
        Split every layer over its ranks; all of them call this function.
    memory_limit : int, optional
        Bytes per rank. If left out: the memory that is free now, or no limit with `comm`.
    checkpoint_path : path, optional
        Rewritten atomically every `checkpoint_every` steps and at the end; not with `comm`.
    resume : bool
        Resume from `checkpoint_path` if it exists; the result is that of an uninterrupted run.
    progress : bool
        Show bars on standard error.
    announce : callable, optional
        Called with the `plan` before the network is allocated.

    Returns
    -------
    dict
        "config", "seed", "sizes", "neurons", "nnz", "density" (of the middle layer), "seconds" (by
        phase), "step_seconds", "evolve_seconds", "predict_seconds" (lists), "seconds_per_sample"
        (median step), "losses" (of each batch before the step), "trend" (Kendall), "test"
        (binomial, or None) and "provenance". A whole network has "budget" (bytes by item),
        "budget_bytes", "peak_bytes" and "weights_sha256". A split one has "ranks", "message_bytes"
        and "message_seconds" (per step, of this rank), "planned_bytes" and "peak_bytes" (of each
        rank).

    Raises
    ------
    OverBudgetError
        If the network does not fit.
    FloatingPointError
        If training diverges.
    ValueError
        If `checkpoint_every` is less than 1, a checkpoint belongs to another run, or a split
        network should evolve or be saved.

    Notes
    -----
    5 to 8 ns per connection and step on two cores, from 5·10⁶ neurons on; memory: `budget.plan`.
    """
    integers(1).check("checkpoint_every", checkpoint_every)
    integers(0).check("seed", seed)
    about: dict[str, Any] = {"seed": seed, "config": asdict(config)}
    state = {**about, "step": 0, "seconds": dict.fromkeys(_PHASES, 0.0)}
    state |= {name: [] for name in _LISTS}
    if comm is not None:
        check_alike(comm.allgather({**about, **code(), "memory_limit": memory_limit}))
        if checkpoint_path is not None:
            raise ValueError("checkpoint: a split network cannot be saved yet; give no file")
    if (resumed_from := to_resume(checkpoint_path, resume)) is not None:
        check_resumed(resumed_from, read_checkpoint(resumed_from), about)  # before memory is taken
    memory = plan(config, threads, comm)
    if announce is not None:
        announce(memory)
    memory.check(memory_limit)
    clock = partial(_phase, state, progress)
    with clock("initialise", memory.connections, "connection") as bar:
        net = TiledMLP(
            config.sizes, epsilon=config.epsilon, batch_size=config.batch_size, alpha=config.alpha,
            seed=seed, threads=threads, empty=resumed_from is not None, progress=bar.update,
            comm=comm,
        )  # fmt: skip
    with net:
        if resumed_from is not None:
            with clock("initialise", net.nbytes, "B") as bar:
                found = read_checkpoint(resumed_from, net, bar.update)
            check_resumed(resumed_from, found, about)  # it may be the previous checkpoint
            found["seconds"]["initialise"] += state["seconds"]["initialise"]
            state |= found
        if checkpoint_path is not None:  # the last two checkpoints are kept
            there = sum(Path(p).exists() for p in (checkpoint_path, previous(checkpoint_path)))
            check_writable(checkpoint_path, (2 - there) * net.nbytes)
        stream = Stream(seed, config.separation)
        try:
            _train(net, stream, config, state, clock, checkpoint_path, checkpoint_every)
            messages = net.message_bytes / config.steps, net.message_seconds / config.steps
            with clock("evaluate", config.held_out, "sample") as bar:
                test, predict_seconds = _test(net, stream, config, bar)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} after step {state['step']}; a lower --learning-rate (now "
                f"{config.learning_rate}) usually helps"
            ) from None
        result = {
            **about, "sizes": list(config.sizes), "neurons": config.neurons,
            "density": budget.densities(config.sizes, config.epsilon)[len(config.sizes) // 2 - 1],
            **{name: state[name] for name in ("seconds", *_LISTS)},
            "predict_seconds": predict_seconds,
            "seconds_per_sample": float(np.median(state["step_seconds"])) / config.batch_size,
            "trend": trend(state["losses"]), "test": test,
            "provenance": provenance(threads, None, 1 if comm is None else comm.size),
        }  # fmt: skip
        if comm is not None:
            ranks = comm.allgather((net.nnz, peak_bytes()))
            return result | {
                "nnz": sum(nnz for nnz, _ in ranks), "ranks": comm.size,
                "message_bytes": messages[0], "message_seconds": messages[1],
                "planned_bytes": memory.n_bytes, "peak_bytes": [peak for _, peak in ranks],
            }  # fmt: skip
        with clock("fingerprint", net.nbytes, "B") as bar:
            weights_sha256 = net.sha256(bar.update)
        return result | {
            "nnz": net.nnz, "budget": memory.items, "budget_bytes": memory.total,
            "peak_bytes": peak_bytes(), "weights_sha256": weights_sha256,
        }  # fmt: skip


def report(result: dict[str, Any]) -> str:
    """Return a result as a few lines of text."""
    if "ranks" in result:
        losses, peak = result["losses"], max(result["peak_bytes"]) / budget.GIB
        return (
            f"{result['neurons']:,} hidden neurons on {result['ranks']} ranks, at most {peak:.2f} "
            f"GiB each; loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last; a step exchanges "
            f"{result['message_bytes'] / 2**20:.0f} MiB in {result['message_seconds']:.2f} s"
        )
    seconds, found, test = result["seconds"], result["trend"], result["test"]
    lines = [
        f"{result['neurons']:,} hidden neurons, {result['nnz']:,} connections",
        f"memory         {result['peak_bytes'] / budget.GIB:.2f} GiB at most, "
        f"{result['budget_bytes'] / budget.GIB:.2f} planned",
        f"initialising   {seconds['initialise']:.1f} s",
        f"training       {seconds['train']:.1f} s, {result['seconds_per_sample']:.3g} s per sample",
        f"evolution      {seconds['evolve']:.1f} s",
        f"loss           {result['losses'][0]:.3f} at first, {result['losses'][-1]:.3f} at last",
    ]
    if found is not None:
        lines.append(f"trend          Kendall's tau {found['tau']:+.2f}, p = {found['p']:.2g}")
    if test is not None:
        lines.append(f"test           {test['correct']} of {test['n']} right, p = {test['p']:.2g}")
    return "\n".join(lines)


def trend(losses: list[float]) -> dict[str, float] | None:
    """Return Kendall's tau of loss and step, and the one-sided p of a fall; None if undefined."""
    if len(losses) < 3 or len({*losses}) == 1:
        return None
    found = kendalltau(range(len(losses)), losses, alternative="less")
    return {"tau": float(found.statistic), "p": float(found.pvalue)}


def _train(
    net: TiledMLP, stream: Stream, config: ExtremeConfig, state: dict[str, Any], clock: Any,
    path: Any, every: int,
) -> None:  # fmt: skip
    """Do the remaining steps; evolve, and save to `path`, when due."""
    evolves = config.zeta > 0 and not config.frozen
    while state["step"] < config.steps:
        stops = ((state["step"] // n + 1) * n for n in (config.evolve_every, every))
        until = min(config.steps, *stops)
        with clock("train", 2 * net.nnz * (until - state["step"]), "connection") as bar:
            while state["step"] < until:
                _step(net, stream, config, state, bar)
        if evolves and until % config.evolve_every == 0 and until < config.steps:
            with clock("evolve", net.nnz, "connection") as bar:
                before = time.perf_counter()
                net.evolve(config.zeta, until, bar.update)
                state["evolve_seconds"].append(time.perf_counter() - before)
        if path is not None and (until % every == 0 or until == config.steps):
            with clock("checkpoint", net.nbytes, "B") as bar:
                net.save(path, state, bar.update)


def _step(
    net: TiledMLP, stream: Stream, config: ExtremeConfig, state: dict[str, Any], bar: Any
) -> None:
    X, y = stream.batch(state["step"], config.batch_size)
    before = time.perf_counter()
    rates = config.learning_rate, config.momentum, config.weight_decay
    logits = net.step(X, y, *rates, bar.update, config.frozen)
    state["step_seconds"].append(time.perf_counter() - before)
    state["step"] += 1
    state["losses"].append(cross_entropy(logits, y))
    told = f"step {state['step']}, loss {np.mean(state['losses'][-10:]):.3f}"
    bar.set_postfix_str(told, refresh=False)


def _test(
    net: TiledMLP, stream: Stream, config: ExtremeConfig, bar: Any
) -> tuple[dict[str, Any] | None, list[float]]:
    """Count the held-out samples that are classified correctly; test the number against chance."""
    correct, seconds = 0, []
    for first in range(0, config.held_out, config.batch_size):
        size = min(config.batch_size, config.held_out - first)
        X, y = stream.batch(first // config.batch_size, size, held_out=True)
        before = time.perf_counter()
        logits = net.logits(X)
        seconds.append(time.perf_counter() - before)
        correct += int((logits.argmax(axis=1) == y).sum())
        bar.update(size)
    if not config.held_out:
        return None, seconds
    found = binomtest(correct, config.held_out, 1 / N_CLASSES, alternative="greater")
    counts = {"n": config.held_out, "correct": correct, "accuracy": correct / config.held_out}
    return {**counts, "p": float(found.pvalue)}, seconds


def _compile(config: ExtremeConfig, threads: int) -> None:
    """Compile everything before memory is counted or anything is timed."""
    how: dict[str, Any] = {"batch_size": config.batch_size, "threads": threads}
    with TiledMLP((8, 64, 64, 2), epsilon=1.0, **how) as net:
        net.step(np.zeros((1, 8), np.float32), np.zeros(1, np.int64), 0.0)
        net.restored()
        if config.zeta:
            net.evolve(0.5, 1)


@contextmanager
def _phase(state: dict[str, Any], shown: bool, name: str, total: float, unit: str) -> Iterator[Any]:
    """Add the time of the block to its phase, and give it a progress bar."""
    start = time.perf_counter()
    with bars.bar(int(total), name, unit=unit, unit_scale=True, hidden=not shown) as bar:
        yield bar
    state["seconds"][name] += time.perf_counter() - start
