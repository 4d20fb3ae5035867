"""One extreme run from plan to result: memory first, then the network, steps, evolution, a test.

The result is a dictionary of JSON types, which the command line prints and the book stores. That
the network learns is tested: a trend in the losses of the batches, none of which was seen before,
and held-out accuracy against chance.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, kendalltau
from tqdm.auto import tqdm

from sparsecore.extreme import budget, saved
from sparsecore.extreme.data import N_CLASSES, N_FEATURES, Stream
from sparsecore.extreme.network import TiledMLP
from sparsecore.functions import cross_entropy
from sparsecore.provenance import peak_rss_mb, provenance

_PHASES = ("initialise", "train", "evolve", "evaluate", "checkpoint", "fingerprint")


@dataclass(frozen=True)
class ExtremeConfig:
    """What an extreme run trains, and how.

    Attributes
    ----------
    neurons : int
        Hidden neurons in all.
    hidden_layers : int
    batch_size : int
    steps : int
    epsilon : float
        Erdős–Rényi sparsity: twice as many connections a neuron between layers of one width.
    alpha : float
        Slope of All-ReLU. Small, or the class is lost in the mean of deep layers.
    learning_rate : float
        Of a neuron with one input; see `TiledMLP.step`.
    momentum, weight_decay : float
    zeta : float
        Fraction of connections that an evolution replaces: less than the study's 0.3, since it
        comes after some steps and not after an epoch, and new connections bring noise to every
        layer that steps have to take out again.
    evolve_every : int
        Steps between evolutions; there is none after the last step.
    separation : float
        Of the classes, in standard deviations of a feature.
    held_out : int
        Samples of the test.
    """

    neurons: int
    hidden_layers: int = 10
    batch_size: int = 4
    steps: int = 50
    epsilon: float = 2.5
    alpha: float = 0.05
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 2e-4
    zeta: float = 0.1
    evolve_every: int = 25
    separation: float = 1.0
    held_out: int = 100

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        for name, least in (
            ("hidden_layers", 1), ("batch_size", 1), ("steps", 1), ("evolve_every", 1),
            ("held_out", 0), ("neurons", self.hidden_layers),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
        for name, low, high in (
            ("learning_rate", 0, np.inf), ("momentum", 0, 1), ("weight_decay", 0, 1),
            ("zeta", 0, 1), ("separation", 0, np.inf), ("alpha", -np.inf, np.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            if not (np.isfinite(value) and low <= value < high):
                raise ValueError(f"{name}: expected a number in [{low}, {high}), got {value!r}")
        budget.lane_width(self.batch_size)
        budget.densities(self.sizes, self.epsilon)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons per layer: features, hidden layers of equal size to within one, classes."""
        ends = [self.neurons * n // self.hidden_layers for n in range(self.hidden_layers + 1)]
        return (N_FEATURES, *(b - a for a, b in pairwise(ends)), N_CLASSES)

    def evolves_after(self, step: int) -> bool:
        """Tell whether the topology evolves after `step`, counted from 1."""
        return self.zeta > 0 and step % self.evolve_every == 0 and step < self.steps


def run(
    config: ExtremeConfig,
    *,
    seed: int = 0,
    threads: int = 1,
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
    seed : int
        With `config` it determines the weights bit for bit.
    threads : int
    memory_limit : int, optional
        Bytes; what is free now if left out.
    checkpoint_path : path, optional
        Rewritten every `checkpoint_every` steps and at the end, atomically.
    checkpoint_every : int
    resume : bool
        Go on from `checkpoint_path` if it exists; the result is the uninterrupted run's.
    progress : bool
        Show bars on standard error.
    announce : callable, optional
        Called with the `Budget` before anything is allocated.

    Returns
    -------
    dict
        "config", "seed", "sizes", "neurons", "nnz", "density" (of the hidden layers), "budget"
        (bytes by item), "budget_bytes", "peak_bytes", "seconds" (by phase), "step_seconds",
        "evolve_seconds", "predict_seconds" (lists), "seconds_per_sample" (median step),
        "losses" (of each batch before the step), "trend" (Kendall), "test" (binomial, or None),
        "weights_sha256" and "provenance".

    Raises
    ------
    OverBudgetError
        If the network does not fit.
    FloatingPointError
        If the loss diverges.
    """
    _compile(config, threads)
    state = _state(config, seed, checkpoint_path, resume)
    plan = budget.plan(config.sizes, config.epsilon, config.batch_size, threads)
    if announce is not None:
        announce(plan)
    plan.check(memory_limit)
    resumed = state is not None
    if state is None:
        state = {"config": asdict(config), "seed": seed, "step": 0, "losses": [],
                 "seconds": dict.fromkeys(_PHASES, 0.0), "step_seconds": [],
                 "evolve_seconds": []}  # fmt: skip
    clock = _Clock(state["seconds"], progress)
    with clock("initialise", plan.connections, "connection") as bar:
        net = TiledMLP(
            config.sizes, epsilon=config.epsilon, batch_size=config.batch_size,
            alpha=config.alpha, seed=seed, threads=threads, empty=resumed, progress=bar.update,
        )  # fmt: skip
    n_bytes = sum(array.nbytes for _, array in net.arrays())
    with net:
        if resumed and checkpoint_path is not None:
            with clock("initialise", n_bytes, "B") as bar:
                saved.restore(net, checkpoint_path, bar.update)
        stream = Stream(seed, config.separation)
        while state["step"] < config.steps:
            until = _next_stop(config, state["step"], checkpoint_every)
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
                    saved.save(net, checkpoint_path, state, bar.update)
        with clock("evaluate", config.held_out, "sample") as bar:
            test, predict_seconds = _test(net, stream, config, bar)
        with clock("fingerprint", n_bytes, "B") as bar:
            weights_sha256 = net.sha256(bar.update)
        result = {
            "config": asdict(config),
            "seed": seed,
            "sizes": list(config.sizes),
            "neurons": config.neurons,
            "nnz": net.nnz,
            "density": budget.densities(config.sizes, config.epsilon)[len(config.sizes) // 2 - 1],
            "budget": plan.items,
            "budget_bytes": plan.total,
            "peak_bytes": peak_bytes(),
            "seconds": state["seconds"],
            "step_seconds": state["step_seconds"],
            "evolve_seconds": state["evolve_seconds"],
            "predict_seconds": predict_seconds,
            "seconds_per_sample": float(np.median(state["step_seconds"])) / config.batch_size,
            "losses": state["losses"],
            "trend": trend(state["losses"]),
            "test": test,
            "weights_sha256": weights_sha256,
            "provenance": provenance(threads, None),
        }
    return result


def report(result: dict[str, Any]) -> str:
    """Return a result as a few lines of text."""
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
    """Test whether losses fall, against there being no trend.

    Returns
    -------
    dict or None
        "tau", Kendall's correlation with the step, and "p", one-sided; None of fewer than three.

    Notes
    -----
    Mann (1945), Kendall (1975).
    """
    if len(losses) < 3:
        return None
    found = kendalltau(range(len(losses)), losses, alternative="less")
    return {"tau": float(found.statistic), "p": float(found.pvalue)}


def peak_bytes() -> int:
    """Return the most memory that this process has had resident.

    Notes
    -----
    VmHWM: what `resource` says goes back to the process that this one was started from.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(peak_rss_mb() * 2**20)


def _state(config: ExtremeConfig, seed: int, path: Any, resume: bool) -> dict[str, Any] | None:
    """Return the state to go on from, or None."""
    if not resume or path is None or not Path(path).exists():
        return None
    state = saved.read_run(path)
    for name, here in (("seed", seed), ("config", asdict(config))):
        if state[name] != here:
            raise ValueError(
                f"{path}: belongs to a run with {name} {state[name]!r}, not {here!r}; resume with "
                "the same options, or name another checkpoint"
            )
    return state


def _next_stop(config: ExtremeConfig, step: int, checkpoint_every: int) -> int:
    """Return the step after which something else is due."""
    return min(
        config.steps,
        (step // config.evolve_every + 1) * config.evolve_every,
        (step // checkpoint_every + 1) * checkpoint_every,
    )


def _step(
    net: TiledMLP, stream: Stream, config: ExtremeConfig, state: dict[str, Any], bar: Any
) -> None:
    X, y = stream.batch(state["step"], config.batch_size)
    before = time.perf_counter()
    try:
        logits = net.step(
            X, y, config.learning_rate, config.momentum, config.weight_decay, follow=bar.update
        )
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error} in step {state['step'] + 1}; a lower --learning-rate (now "
            f"{config.learning_rate}) usually helps"
        ) from None
    state["step_seconds"].append(time.perf_counter() - before)
    state["step"] += 1
    loss = cross_entropy(logits, y)
    state["losses"].append(loss)
    bar.set_postfix_str(f"step {state['step']}, loss {np.mean(state['losses'][-10:]):.3f}")


def _test(
    net: TiledMLP, stream: Stream, config: ExtremeConfig, bar: Any
) -> tuple[dict[str, Any] | None, list[float]]:
    """Count the held-out samples that are classified rightly, and test that against chance."""
    correct, seconds = 0, []
    for first in range(0, config.held_out, config.batch_size):
        size = min(config.batch_size, config.held_out - first)
        X, y = stream.held_out(first // config.batch_size, size)
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
    """Have everything compiled before memory is counted or anything timed."""
    tiny = (8, 64, 64, 2)
    with TiledMLP(
        tiny, epsilon=1.0, batch_size=config.batch_size, alpha=config.alpha, threads=threads
    ) as net:
        net.step(np.zeros((1, 8), np.float32), np.zeros(1, np.int64), 0.0)
        net.evolve(0.5, 1)


class _Clock:
    """Times the phases of a run and shows a bar for each."""

    def __init__(self, seconds: dict[str, float], shown: bool) -> None:
        self._seconds, self._shown = seconds, shown

    @contextmanager
    def __call__(self, phase: str, total: float, unit: str) -> Iterator[Any]:
        start = time.perf_counter()
        with tqdm(
            total=int(total), desc=phase, unit=unit, unit_scale=True, disable=not self._shown,
            file=sys.stderr, mininterval=0.2 if sys.stderr.isatty() else 10,
        ) as bar:  # fmt: skip
            yield bar
        self._seconds[phase] += time.perf_counter() - start
