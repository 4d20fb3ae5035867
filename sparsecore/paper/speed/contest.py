"""The contest: full training steps of the peers, timed in interleaved rounds.

Each peer runs in a process of its own, with its threads set before its libraries load. The peers
take turns, so that a disturbance of the machine hits all alike. One that is not installed, or
fails, is listed with the reason.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import numpy as np

from sparsecore.bench import meeting_seconds, spread, timed
from sparsecore.compiled.team import cpu_count
from sparsecore.paper.speed.peers import Adapter, Problem
from sparsecore.paper.speed.registry import PEERS, THROUGH_BLAS, absent, installed_version
from sparsecore.provenance import busy_cpus, busy_seconds, loaded_blas, peak_rss_mb, provenance

_STEPS_PER_CALL = 128  # the trainers hand over many batches at a time, too
_PAUSE = 0.2  # seconds between two peers: idle OpenMP threads spin for a while
_WAIT = 2.0  # seconds until the machine is looked at again
_SLACK = 0.15  # CPUs that others may use beyond those left over: the system is never quite still


def compare(
    problem: Problem,
    keys: Sequence[str] | None = None,
    *,
    rounds: int = 5,
    seconds: float = 0.5,
    patience: float = 0.0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time full training steps of all peers, or of `keys` and sparsecore, in interleaved rounds.

    In each round each peer has a turn of some `seconds`, of at least one call. `patience` is how
    many seconds in all to wait for other processes to leave CPUs free, and to repeat turns in which
    they did not. Of each peer, "ms" are milliseconds per step (the median over rounds of the
    round's median) and "ratio" its time over sparsecore's, round by round; "meeting_us" is how long
    the threads took to meet before and after.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected an integer of at least 1, got {rounds}")
    chosen = list(PEERS) if keys is None else list(dict.fromkeys(["sparsecore", *keys]))
    gone = {key: reason for key in chosen if (reason := absent(key, problem)) is not None}
    about: dict[str, dict[str, Any]] = {}
    turns: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        # All are made at once: that is not timed.
        running = {
            key: stack.enter_context(_Process(key, problem)) for key in chosen if key not in gone
        }
        for key, process in running.items():
            progress(f"starting {PEERS[key].label}")
            try:
                about[key], turns[key] = process.ask(_start, key, seconds), []
            except PeerError as error:
                gone[key] = f"failed: {error}"
        if "sparsecore" in gone:
            raise RuntimeError(f"sparsecore itself {gone['sparsecore']}")
        order = list(turns)
        meetings = [meeting_seconds(problem.threads)]
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            for key in order:
                turn, patience = _undisturbed(running[key], seconds, problem.threads, patience)
                turns[key].append(turn)
            order = order[1:] + order[:1]  # nobody always follows the same neighbour
        meetings.append(meeting_seconds(problem.threads))
        for key in turns:
            about[key]["peak_rss_mb"] = round(running[key].ask(peak_rss_mb), 1)
    ours = np.array([turn["ms"] for turn in turns["sparsecore"]])
    return {
        "problem": {**asdict(problem), "sizes": list(problem.sizes)},
        "nnz": problem.model.nnz,
        "meeting_us": [1e6 * seconds for seconds in meetings],
        "peers": {key: {**_summary(turns[key], ours), **about[key]} for key in turns},
        "absent": {key: {"label": PEERS[key].label, "reason": gone[key]} for key in gone},
        "provenance": provenance(problem.threads, None),
    }


def _summary(turns: list[dict[str, float]], ours: np.ndarray) -> dict[str, Any]:
    ms = np.array([turn["ms"] for turn in turns])
    names = ("ms", "cpu_ms", "cores", "others")
    return {
        **{name: float(np.median([turn[name] for turn in turns])) for name in names},
        "low": float(ms.min()),
        "high": float(ms.max()),
        "rounds": ms.tolist(),
        "ratio": spread(ms / ours),
    }


def report(result: dict[str, Any]) -> str:
    """Return what `compare` found as a table of plain text, the fastest first."""
    problem = result["problem"]
    lines = [
        f"{result['nnz']:,} connections, batch {problem['batch_size']}, "
        f"{problem['threads']} thread(s), milliseconds per training step",
        f"{'':24} {'median':>8} {'fastest':>8} {'slowest':>8} {'ratio':>7} {'CPUs':>5} {'MiB':>6}",
    ]
    for found in sorted(result["peers"].values(), key=lambda found: found["ms"]):
        lines.append(
            f"{found['label']:24} {found['ms']:8.2f} {found['low']:8.2f} {found['high']:8.2f} "
            f"{found['ratio']['median']:7.2f} {found['cores']:5.2f} {found['peak_rss_mb']:6.0f}"
        )
    if problem["threads"] > 1:
        before, after = result["meeting_us"]
        lines.append(f"the threads meet in {before:.2f} us before, {after:.2f} us after")
    lines += [f"{left['label']:24} {left['reason']}" for left in result["absent"].values()]
    lines += [f"{found['label']}: {found['note']}" for found in result["peers"].values()]
    return "\n".join(lines)


# --- timing --------------------------------------------------------------------------------------


def stopwatch(peer: Adapter, seconds: float, steps: int) -> dict[str, float]:
    """Time calls of `steps` steps for some seconds, at least one.

    "ms" is per step, the median over calls, "cpu_ms" the process's CPU time per step; "cores" is
    CPU time over wall time, and "others" the CPUs that other processes kept busy meanwhile.
    """
    rng = np.random.default_rng(0)
    n, size = len(peer.problem.data[1]), steps * peer.problem.batch_size
    times: list[float] = []
    begin, cpu, all_cpu = time.perf_counter(), time.process_time(), busy_seconds()
    while not times or time.perf_counter() - begin < seconds:
        times.append(timed(partial(peer.train, rng.integers(n, size=size)))[0])
    wall, own = time.perf_counter() - begin, time.process_time() - cpu
    others = max(0.0, busy_seconds() - all_cpu - own)
    return {
        "ms": 1e3 * float(np.median(times)) / steps,
        "cpu_ms": 1e3 * own / (len(times) * steps),
        "cores": own / wall,
        "others": others / wall,
    }


def warm_up(peer: Adapter, seconds: float) -> int:
    """Compile, fill caches, and return how many steps a timed call should have."""
    stopwatch(peer, 0, 1)
    ms = stopwatch(peer, seconds / 2, 1)["ms"]
    steps = int(np.clip(1e3 * seconds / 4 / ms, 1, _STEPS_PER_CALL))
    stopwatch(peer, 0, steps)
    return steps


def _undisturbed(
    process: _Process, seconds: float, threads: int, patience: float
) -> tuple[dict[str, float], float]:
    """Return a turn that others left CPUs free for, or the last one, and the patience left."""
    free = cpu_count() - threads + _SLACK
    end = time.perf_counter() + patience
    while True:
        busy, left = busy_cpus(_PAUSE), end - time.perf_counter()
        if left > 0 and busy > free:
            time.sleep(min(_WAIT, left))
            continue
        turn, left = process.ask(_turn, seconds), end - time.perf_counter()
        if turn["others"] <= free or left <= 0:
            # Turns take time anyway; only what was waited for or repeated counts.
            return turn, min(patience, left + _PAUSE + seconds)


# --- the peers' processes ------------------------------------------------------------------------


class PeerError(RuntimeError):
    """A peer raised, or its process died."""


class _Process(ProcessPoolExecutor):
    """A process of its own, which holds one peer and calls functions for us."""

    def __init__(self, key: str, problem: Problem) -> None:
        super().__init__(1, get_context("spawn"))
        with _thread_settings(problem.threads):
            self._made = self.submit(_call, _make, key, problem)  # starts the process

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have a function called when the peer is made, and return what it returns."""
        try:
            self._made.result()
            return self.submit(_call, function, *args).result()
        except BrokenProcessPool:
            raise PeerError("its process died") from None

    def __exit__(self, *exc_info: object) -> None:
        with suppress(PeerError):
            self.ask(_close)
        self.shutdown()


def _thread_settings(threads: int) -> AbstractContextManager[Any]:
    """Set what libraries read when they are loaded, for processes that are started meanwhile."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return patch.dict(os.environ, dict.fromkeys(names, str(threads)))


_held: dict[str, Any] = {}  # in a peer's process: its "peer", and the "steps" of a call


def _call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in the peer's process; whatever a foreign library raises becomes a text."""
    try:
        return function(*args)
    except Exception as error:
        traceback.print_exc()
        raise PeerError(f"{type(error).__name__}: {error}") from None


def _make(key: str, problem: Problem) -> None:
    if key == "jax-dense" and hasattr(os, "sched_setaffinity"):
        # XLA takes as many threads as it may use CPUs, and asks nothing else.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: problem.threads])
    _held["peer"] = PEERS[key].adapter(problem)


def _start(key: str, seconds: float) -> dict[str, Any]:
    """Warm up, and say what is timed."""
    _held["steps"] = warm_up(_held["peer"], seconds)
    return {
        "label": PEERS[key].label,
        "note": PEERS[key].note,
        "version": installed_version(key),
        "blas": loaded_blas() if key in THROUGH_BLAS else [],
    }


def _turn(seconds: float) -> dict[str, float]:
    return stopwatch(_held["peer"], seconds, _held["steps"])


def _close() -> None:
    _held["peer"].close()
