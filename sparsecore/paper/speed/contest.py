"""The contest: full training steps of the peers, timed in interleaved rounds.

Each peer runs in a process of its own, with its threads set before its libraries load. The peers
take turns, so that a disturbance of the machine hits all alike. One that is not installed, or
fails, is listed with the reason.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

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
    they did not. `progress` is called with a line before each round.

    The result has "peers", and for each that ran "ms" (milliseconds per step: the median over
    rounds of the round's median), "low", "high" and "rounds", "ratio" (its time over sparsecore's,
    round by round), "cpu_ms", "cores" and "others" (medians of what `stopwatch` returns), and what
    was timed; "absent", the peers left out with the "reason"; "meeting_us", how long the threads
    took to meet before and after; "nnz", "problem" and "provenance".
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected an integer of at least 1, got {rounds}")
    chosen = list(PEERS) if keys is None else list(dict.fromkeys(["sparsecore", *keys]))
    gone = {key: reason for key in chosen if (reason := absent(key, problem)) is not None}
    about: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        running = {}
        for key in chosen:
            if key not in gone:
                running[key] = stack.enter_context(_Process(problem.threads))
                running[key].tell(_make, key, problem)  # all at once: that is not timed
        for key in list(running):
            progress(f"starting {PEERS[key].label}")
            try:
                running[key].hear()
                about[key] = running[key].ask(_start, key, seconds)
            except PeerError as error:
                gone[key] = f"failed: {error}"
                del running[key]
        if "sparsecore" in gone:
            raise RuntimeError(f"sparsecore itself {gone['sparsecore']}")
        turns: dict[str, list[dict[str, float]]] = {key: [] for key in running}
        order = list(running)
        meetings = [meeting_seconds(problem.threads)]
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            for key in order:
                turn, patience = _undisturbed(running[key], seconds, problem.threads, patience)
                turns[key].append(turn)
            order = order[1:] + order[:1]  # nobody always follows the same neighbour
        meetings.append(meeting_seconds(problem.threads))
        for key, process in running.items():
            about[key]["peak_rss_mb"] = round(process.ask(peak_rss_mb), 1)
    ours = np.array([turn["ms"] for turn in turns["sparsecore"]])
    return {
        "problem": {**asdict(problem), "sizes": list(problem.sizes)},
        "nnz": problem.model.nnz,
        "meeting_us": [1e6 * seconds for seconds in meetings],
        "peers": {key: {**_summary(turns[key], ours), **about[key]} for key in turns},
        "absent": {
            key: {"label": PEERS[key].label, "reason": reason} for key, reason in gone.items()
        },
        "provenance": provenance(problem.threads, None),
    }


def _summary(turns: list[dict[str, float]], ours: np.ndarray) -> dict[str, Any]:
    ms = np.array([turn["ms"] for turn in turns])
    return {
        "ms": float(np.median(ms)),
        "low": float(ms.min()),
        "high": float(ms.max()),
        "rounds": ms.tolist(),
        "ratio": spread(ms / ours),
        **{
            name: float(np.median([turn[name] for turn in turns]))
            for name in ("cpu_ms", "cores", "others")
        },
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
        lines.append(
            "the threads meet in {:.2f} us before, {:.2f} us after".format(*result["meeting_us"])
        )
    lines += [f"{left['label']:24} {left['reason']}" for left in result["absent"].values()]
    lines += [f"{found['label']}: {found['note']}" for found in result["peers"].values()]
    return "\n".join(lines)


# --- timing --------------------------------------------------------------------------------------


def stopwatch(peer: Adapter, seconds: float, steps: int) -> dict[str, float]:
    """Time calls of `steps` steps for some seconds, at least one.

    Returned are "ms" per step (median over calls), "cpu_ms" (the process's CPU time per step,
    mean), "cores" (CPU time over wall time: below the number of threads, one of them waited) and
    "others" (CPUs that other processes kept busy meanwhile).
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
    """Return a turn that others left CPUs free for, and the patience that is left.

    If patience runs out, it is the turn that there was.
    """
    free = cpu_count() - threads + _SLACK
    begin = time.perf_counter()
    while True:
        busy = busy_cpus(_PAUSE)
        left = patience - (time.perf_counter() - begin)
        if left > 0 and busy > free:
            time.sleep(min(_WAIT, left))
            continue
        turn = process.ask(_turn, seconds)
        left = patience - (time.perf_counter() - begin)
        if turn["others"] <= free or left <= 0:
            # Turns take time anyway; only what was waited for or repeated counts.
            spent = time.perf_counter() - begin - _PAUSE - seconds
            return turn, patience - max(0.0, spent)


# --- the peers' processes ------------------------------------------------------------------------


class PeerError(RuntimeError):
    """A peer raised, or its process died."""


class _Process:
    """A process that calls functions for us: it holds one peer."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _thread_settings(threads):
            self._process.start()
        theirs.close()

    def tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Have a function called."""
        try:
            self._pipe.send((function, args))
        except OSError:
            pass  # it died, which `hear` reports

    def hear(self) -> Any:
        """Wait for what the function returns."""
        try:
            fine, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise PeerError("its process died") from None
        if not fine:
            raise PeerError(answer)
        return answer

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have a function called, and wait for what it returns."""
        self.tell(function, *args)
        return self.hear()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pipe.close()  # which ends the process
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


@contextmanager
def _thread_settings(threads: int) -> Iterator[None]:
    """Set what libraries read when they are loaded, for processes that are started meanwhile."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    settings = dict.fromkeys(names, str(threads))
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_held: dict[str, Any] = {}  # in a peer's process: its "peer", and the "steps" of a call


def _serve(pipe: Any) -> None:
    """Call functions until the pipe closes; runs in the peer's process."""
    while True:
        try:
            function, args = pipe.recv()
        except (EOFError, OSError):
            break
        try:
            pipe.send((True, function(*args)))
        except Exception as error:  # whatever a foreign library raises is the peer's result
            traceback.print_exc()
            pipe.send((False, f"{type(error).__name__}: {error}"))
    if "peer" in _held:
        _held["peer"].close()


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
