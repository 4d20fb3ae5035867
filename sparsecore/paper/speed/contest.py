"""The contest: full training steps of the peers, timed in interleaved rounds.

Each peer runs in a process of its own, with its threads set before its libraries load; they take
turns, so that a disturbance of the machine hits all alike. One that is not installed, or fails, is
listed with the reason. What a peer does is written in `peers`; the book's other measurements are in
`speed`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore.bench import meeting_seconds
from sparsecore.compiled.team import cpu_count
from sparsecore.paper.speed.peers import (
    PEERS,
    THROUGH_BLAS,
    Problem,
    Trainer,
    absent,
    installed_version,
)
from sparsecore.provenance import loaded_blas, peak_rss_mb, provenance

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
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Time full training steps of all peers, in interleaved rounds.

    Parameters
    ----------
    problem : Problem
    keys : sequence of str, optional
        Which of `PEERS`; all by default. "sparsecore", which all are compared with, always runs.
    rounds : int
        How often it is each peer's turn.
    seconds : float
        How long a turn is, in seconds; at least one call is timed.
    patience : float
        Seconds in all to wait for other processes to leave CPUs free, and to repeat turns in which
        they did not.
    progress : callable, optional
        Called with one line before each round.

    Returns
    -------
    dict
        "problem"; "nnz"; "meeting_us" (`bench.meeting_seconds` before and after); "peers": per
        peer that ran "ms" (milliseconds per step: the median over rounds of the round's median),
        "low" and "high" (smallest and largest round), "rounds", "ratio" (its time over
        sparsecore's, round by round: "median", "low", "high"), "cpu_ms", "cores" and "others"
        (medians of what `stopwatch` returns), "peak_rss_mb", "label", "note", "version", "blas";
        "absent": the peers left out, each with the "reason"; "provenance".

    Raises
    ------
    ValueError
        If a value is out of its range.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected an integer of at least 1, got {rounds}")
    chosen = list(PEERS) if keys is None else ["sparsecore", *keys]
    chosen = list(dict.fromkeys(chosen))
    gone = {key: reason for key in chosen if (reason := absent(key, problem)) is not None}
    turns: dict[str, list[dict[str, float]]] = {}
    about: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        workers = {}
        for key in chosen:
            if key not in gone:
                workers[key] = stack.enter_context(_Worker(key, problem))
                workers[key].tell("make", 0)  # all at once: that is not timed
        for key in list(workers):
            if progress:
                progress(f"starting {PEERS[key].label}")
            try:
                workers[key].hear()
                about[key] = workers[key].ask("start", seconds)
                turns[key] = []
            except WorkerError as error:
                gone[key] = f"failed: {error}"
                del workers[key]
        if "sparsecore" in gone:
            raise RuntimeError(f"sparsecore itself {gone['sparsecore']}")
        order = list(workers)
        meetings = [meeting_seconds(problem.threads)]
        for number in range(rounds):
            if progress:
                progress(f"round {number + 1} of {rounds}")
            for key in order:
                turn, patience = _undisturbed(workers[key], seconds, problem.threads, patience)
                turns[key].append(turn)
            order = order[1:] + order[:1]  # nobody always follows the same neighbour
        meetings.append(meeting_seconds(problem.threads))
        for key, worker in workers.items():
            about[key]["peak_rss_mb"] = worker.ask("memory", 0)
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


def _summary(turns: list[dict[str, float]], ours: np.ndarray) -> dict[str, Any]:
    ms = np.array([turn["ms"] for turn in turns])
    return {
        "ms": float(np.median(ms)),
        "low": float(ms.min()),
        "high": float(ms.max()),
        "rounds": ms.tolist(),
        "ratio": spread(ms / ours),
        "cpu_ms": float(np.median([turn["cpu_ms"] for turn in turns])),
        "cores": float(np.median([turn["cores"] for turn in turns])),
        "others": float(np.median([turn["others"] for turn in turns])),
    }


def spread(values: Any) -> dict[str, float]:
    """Return median, smallest and largest of some numbers."""
    return {
        "median": float(np.median(values)),
        "low": float(np.min(values)),
        "high": float(np.max(values)),
    }


def stopwatch(trainer: Trainer, seconds: float, steps: int) -> dict[str, float]:
    """Time calls of `steps` steps for some seconds, at least one.

    Returns
    -------
    dict
        "ms" per step (median over calls), "cpu_ms" (the process's CPU time per step, mean), "cores"
        (CPU time over wall time: below the number of threads, somebody waited) and "others" (CPUs
        that other processes kept busy meanwhile; 0 where the system does not tell).
    """
    rng = np.random.default_rng(0)
    n = len(trainer.problem.data[1])
    times: list[float] = []
    begin, cpu, all_cpu = time.perf_counter(), time.process_time(), _busy_seconds()
    while not times or time.perf_counter() - begin < seconds:
        rows = rng.integers(n, size=steps * trainer.problem.batch_size)
        start = time.perf_counter()
        trainer.train(rows)
        times.append(time.perf_counter() - start)
    wall, busy = time.perf_counter() - begin, time.process_time() - cpu
    others = max(0.0, _busy_seconds() - all_cpu - busy)
    return {
        "ms": 1e3 * float(np.median(times)) / steps,
        "cpu_ms": 1e3 * busy / (len(times) * steps),
        "cores": busy / wall,
        "others": others / wall,
    }


def _busy_seconds() -> float:
    """Return the CPU time of all processes since the system started, or 0 if it does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, stolen = map(int, fields[:8])
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def _undisturbed(
    worker: _Worker, seconds: float, threads: int, patience: float
) -> tuple[dict[str, float], float]:
    """Return a turn that others left CPUs free for, or what there was when patience ran out."""
    free = cpu_count() - threads + _SLACK
    begin = time.perf_counter()
    while True:
        before = _busy_seconds()
        time.sleep(_PAUSE)
        left = patience - (time.perf_counter() - begin)
        if left > 0 and (_busy_seconds() - before) / _PAUSE > free:
            time.sleep(min(_WAIT, left))
            continue
        turn = worker.ask("turn", seconds)
        left = patience - (time.perf_counter() - begin)
        if turn["others"] <= free or left <= 0:
            # Turns take time anyway; only what was waited for or repeated counts.
            spent = time.perf_counter() - begin - _PAUSE - seconds
            return turn, patience - max(0.0, spent)


def warm_up(trainer: Trainer, seconds: float) -> int:
    """Compile, fill caches, and return how many steps a timed call should have."""
    stopwatch(trainer, 0, 1)
    ms = stopwatch(trainer, seconds / 2, 1)["ms"]
    steps = int(np.clip(1e3 * seconds / 4 / ms, 1, _STEPS_PER_CALL))
    stopwatch(trainer, 0, steps)
    return steps


class WorkerError(RuntimeError):
    """A peer's process raised or died."""


class _Worker:
    """A process that holds one peer and takes its turns."""

    def __init__(self, key: str, problem: Problem) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, key, problem), daemon=True)
        with _thread_settings(problem.threads):
            self._process.start()
        theirs.close()

    def tell(self, what: str, seconds: float) -> None:
        """Send a question."""
        try:
            self._pipe.send((what, seconds))
        except OSError:
            pass  # it died, which `hear` reports

    def hear(self) -> Any:
        """Wait for the answer."""
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerError("its process died") from None
        if kind == "error":
            raise WorkerError(answer)
        return answer

    def ask(self, what: str, seconds: float) -> Any:
        """Send a question and wait for the answer."""
        self.tell(what, seconds)
        return self.hear()

    def __enter__(self) -> _Worker:
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


def _serve(pipe: Any, key: str, problem: Problem) -> None:
    """Answer questions until the pipe closes; runs in the peer's process."""
    peer, trainer, steps = PEERS[key], None, 1
    if key == "jax-dense":
        _confine(problem.threads)
    while True:
        try:
            what, seconds = pipe.recv()
        except (EOFError, OSError):
            break
        try:
            answer: Any = None
            if what == "make":
                trainer = peer.trainer(problem)
            elif what == "start":
                assert trainer is not None
                steps = warm_up(trainer, seconds)
                answer = {
                    "label": peer.label,
                    "note": peer.note,
                    "version": installed_version(key),
                    "blas": loaded_blas() if key in THROUGH_BLAS else [],
                }
            elif what == "turn":
                assert trainer is not None
                answer = stopwatch(trainer, seconds, steps)
            else:
                answer = round(peak_rss_mb(), 1)
            pipe.send(("answer", answer))
        except Exception as error:  # whatever a foreign library raises is the peer's result
            traceback.print_exc()
            pipe.send(("error", f"{type(error).__name__}: {error}"))
    if trainer is not None:
        trainer.close()


def _confine(threads: int) -> None:
    """Keep this process to as many CPUs as it may have threads: XLA asks nothing else."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
