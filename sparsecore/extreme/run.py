"""One extreme run from plan to result: memory first, then the network, steps, evolution, a test.

A whole network and one that is split over ranks go through the same steps. Two statistical tests
say whether the network learns: a trend in the losses of the batches, each of which is new, and
held-out accuracy against chance.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, kendalltau

from sparsecore import progress as bars
from sparsecore.checkpoint import check_resumed
from sparsecore.extreme import budget, split
from sparsecore.extreme.config import ExtremeConfig
from sparsecore.extreme.data import N_CLASSES, Stream
from sparsecore.extreme.network import TiledMLP, read_checkpoint
from sparsecore.files import check_writable
from sparsecore.functions import cross_entropy
from sparsecore.provenance import check_alike, code, peak_bytes, provenance

_LISTS = "losses", "step_seconds", "evolve_seconds"
_PHASES = ("initialise", "train", "evolve", "evaluate", "checkpoint", "fingerprint")


def plan(config: ExtremeConfig, threads: int, comm: Any = None) -> budget.Budget:
    """Plan the memory of the network of `config` on `threads`, or of each rank of `comm`."""
    ranks = None if comm is None else comm.size
    return budget.plan(config.sizes, config.epsilon, config.batch_size, threads, ranks)


def run(
    config: ExtremeConfig,
    *,
    seed: int = 0,
    threads: int = 1,
    comm: Any = None,
    memory_limit: int | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 25,
    resume: bool = False,
    progress: bool = False,
    announce: Any = None,
) -> dict[str, Any]:
    """Train a network on artificial data and test it.

    Parameters
    ----------
    config : ExtremeConfig
        With zeta 0 if `comm` is given.
    seed, threads : int
        `seed` and `config` determine the weights bit for bit, on CPUs of one lane width; threads
        are those of each rank.
    comm : mpi4py.MPI.Comm, optional
        Split every layer over its ranks; all of them call this function.
    memory_limit : int, optional
        Bytes, of each rank; what is free now if left out, and no limit with `comm`.
    checkpoint_path : path, optional
        Rewritten every `checkpoint_every` steps and at the end, atomically; not with `comm`.
    resume : bool
        Go on from `checkpoint_path` if it exists; the result is the uninterrupted run's.
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
        If the loss diverges.
    ValueError
        If a checkpoint belongs to another run, or a split network is to evolve or to be saved.

    Notes
    -----
    7 to 9 ns per connection and step on two cores; memory: `budget.plan`.
    """
    about = {"seed": seed, "config": asdict(config)}
    state: dict[str, Any] = {**about, "step": 0, "seconds": dict.fromkeys(_PHASES, 0.0)}
    state |= {name: [] for name in _LISTS}
    if comm is not None:
        check_alike(comm.allgather({**about, **code(), "memory_limit": memory_limit}))
        if config.zeta:
            raise ValueError(
                f"zeta: expected 0 for layers split over ranks, got {config.zeta}; their topology "
                "does not evolve"
            )
        if checkpoint_path is not None:
            raise ValueError("--split: expected no --checkpoint, a split network is not saved yet")
    elif checkpoint_path is not None:
        check_writable(checkpoint_path)
    _compile(config, threads)
    resumed = resume and checkpoint_path is not None and Path(checkpoint_path).exists()
    if resumed and checkpoint_path is not None:
        state |= _checked(checkpoint_path, read_checkpoint(checkpoint_path), about, config)
    memory = plan(config, threads, comm)
    if announce is not None:
        announce(memory)
    memory.check(memory_limit)
    clock = partial(_phase, state, progress)
    with clock("initialise", memory.connections, "connection") as bar:
        options: dict[str, Any] = {
            "epsilon": config.epsilon, "batch_size": config.batch_size, "alpha": config.alpha,
            "seed": seed, "threads": threads, "empty": resumed, "progress": bar.update,
        }  # fmt: skip
        kind = TiledMLP if comm is None else partial(split.SplitMLP, comm)
        net = kind(config.sizes, **options)
    n_bytes = sum(array.nbytes for _, array in net.arrays())
    with net:
        if resumed and checkpoint_path is not None:
            with clock("initialise", n_bytes, "B") as bar:
                found = read_checkpoint(checkpoint_path, net, bar.update)
            if found["step"] != state["step"]:  # the checkpoint before
                state |= _checked(checkpoint_path, found, about, config)
        stream = Stream(seed, config.separation)
        while state["step"] < config.steps:
            stops = ((state["step"] // n + 1) * n for n in (config.evolve_every, checkpoint_every))
            until = min(config.steps, *stops)
            with clock("train", 2 * net.nnz * (until - state["step"]), "connection") as bar:
                while state["step"] < until:
                    _step(net, stream, config, state, bar)
            if config.evolves_after(until):
                with clock("evolve", net.nnz, "connection") as bar:
                    before = time.perf_counter()
                    net.evolve(config.zeta, until, bar.update)
                    state["evolve_seconds"].append(time.perf_counter() - before)
            due = until % checkpoint_every == 0 or until == config.steps
            if checkpoint_path is not None and due:
                with clock("checkpoint", n_bytes, "B") as bar:
                    net.save(checkpoint_path, state, bar.update)
        messages = net.message_bytes / config.steps, net.message_seconds / config.steps
        with clock("evaluate", config.held_out, "sample") as bar:
            test, predict_seconds = _test(net, stream, config, bar)
        result = {
            **about,
            "sizes": list(config.sizes),
            "neurons": config.neurons,
            "density": budget.densities(config.sizes, config.epsilon)[len(config.sizes) // 2 - 1],
            **{name: state[name] for name in ("seconds", *_LISTS)},
            "predict_seconds": predict_seconds,
            "seconds_per_sample": float(np.median(state["step_seconds"])) / config.batch_size,
            "trend": trend(state["losses"]),
            "test": test,
            "provenance": provenance(threads, None, 1 if comm is None else comm.size),
        }
        if comm is not None:
            ranks = comm.allgather((net.nnz, peak_bytes()))
            return result | {
                "nnz": sum(nnz for nnz, _ in ranks),
                "ranks": comm.size,
                "message_bytes": messages[0],
                "message_seconds": messages[1],
                "planned_bytes": memory.n_bytes,
                "peak_bytes": [peak for _, peak in ranks],
            }
        with clock("fingerprint", n_bytes, "B") as bar:
            weights_sha256 = net.sha256(bar.update)
        return result | {
            "nnz": net.nnz,
            "budget": memory.items,
            "budget_bytes": memory.total,
            "peak_bytes": peak_bytes(),
            "weights_sha256": weights_sha256,
        }


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
        f"training       {seconds['train']:.1f} s, {result['seconds_per_sample']:.3g} s a sample",
        f"evolution      {seconds['evolve']:.1f} s",
        f"loss           {result['losses'][0]:.3f} at first, {result['losses'][-1]:.3f} at last",
    ]
    if found is not None:
        lines.append(f"trend          Kendall's tau {found['tau']:+.2f}, p = {found['p']:.2g}")
    if test is not None:
        lines.append(f"test           {test['correct']} of {test['n']} right, p = {test['p']:.2g}")
    return "\n".join(lines)


def trend(losses: list[float]) -> dict[str, float] | None:
    """Return Kendall's tau of loss and step, and the one-sided p of a fall; None below three."""
    if len(losses) < 3:
        return None
    found = kendalltau(range(len(losses)), losses, alternative="less")
    return {"tau": float(found.statistic), "p": float(found.pvalue)}


def _checked(
    path: Any, state: dict[str, Any] | None, about: dict[str, Any], config: ExtremeConfig
) -> dict[str, Any]:
    """Return the state in a checkpoint; refuse that of another run, and one that cannot be."""

    def possible(state: dict[str, Any]) -> bool:
        step, lists = state["step"], [state[name] for name in _LISTS]
        numbers = [*chain(*lists), *(state["seconds"][name] for name in _PHASES)]
        return (
            step in range(config.steps + 1)
            and [len(values) for values in lists]
            == [step, step, sum(map(config.evolves_after, range(1, step + 1)))]
            and all(isinstance(v, (int, float)) and np.isfinite(v) for v in numbers)
        )

    return check_resumed(path, state, about, possible, f"no run of {config.steps} steps")


def _step(
    net: TiledMLP, stream: Stream, config: ExtremeConfig, state: dict[str, Any], bar: Any
) -> None:
    X, y = stream.batch(state["step"], config.batch_size)
    before = time.perf_counter()
    try:
        logits = net.step(
            X, y, config.learning_rate, config.momentum, config.weight_decay, bar.update,
            config.frozen,
        )  # fmt: skip
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error} in step {state['step'] + 1}; a lower --learning-rate (now "
            f"{config.learning_rate}) usually helps"
        ) from None
    state["step_seconds"].append(time.perf_counter() - before)
    state["step"] += 1
    state["losses"].append(cross_entropy(logits, y))
    bar.set_postfix_str(f"step {state['step']}, loss {np.mean(state['losses'][-10:]):.3f}")


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
    accuracy = correct / config.held_out
    return {
        "n": config.held_out, "correct": correct, "accuracy": accuracy, "p": float(found.pvalue)
    }, seconds  # fmt: skip


def _compile(config: ExtremeConfig, threads: int) -> None:
    """Compile everything before memory is counted or anything is timed."""
    tiny = (8, 64, 64, 2)
    with TiledMLP(
        tiny, epsilon=1.0, batch_size=config.batch_size, alpha=config.alpha, threads=threads
    ) as net:
        net.step(np.zeros((1, 8), np.float32), np.zeros(1, np.int64), 0.0)
        if config.zeta:
            net.evolve(0.5, 1)


@contextmanager
def _phase(state: dict[str, Any], shown: bool, name: str, total: float, unit: str) -> Iterator[Any]:
    """Add the time of the block to its phase, and give it a progress bar."""
    start = time.perf_counter()
    with bars.bar(int(total), name, unit=unit, unit_scale=True, hidden=not shown) as bar:
        yield bar
    state["seconds"][name] += time.perf_counter() - start
