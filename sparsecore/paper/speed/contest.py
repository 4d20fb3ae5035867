"""The contest: the peers, and their training steps timed in interleaved rounds.

Each peer runs in a process of its own, with its threads set before its libraries load.
"""

import os
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import numpy as np

from sparsecore.bench import meeting_seconds, spread, timed
from sparsecore.config import integers
from sparsecore.paper.speed import frameworks, peers
from sparsecore.paper.speed.peers import Adapter, Problem
from sparsecore.provenance import loaded_blas, peak_bytes, provenance

PEERS: dict[str, type[Adapter]] = {
    "sparsecore": peers.SparseCore, "c-loop": peers.CLoop,
    "torch-csr": frameworks.TorchCSR, "sparselab": frameworks.TorchSparseLab,
    "sparseprop": frameworks.TorchSparseProp, "torch-dense": frameworks.TorchDense,
    "torch-masked": frameworks.TorchMasked, "jax-dense": frameworks.JaxDense,
    "blas-dense": peers.Dense, "scikit-learn-dense": peers.ScikitLearn,
}  # fmt: skip
_THROUGH_BLAS = ("blas-dense", "scikit-learn-dense")  # PyTorch and JAX bring their own
_STEPS_PER_CALL = 128  # the trainers hand over many batches at a time, too
_PAUSE = 0.2  # seconds between two peers: idle OpenMP threads spin for a while
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read when loaded


def compare(
    problem: Problem, *, rounds: int = 5, seconds: float = 0.5,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Time full training steps of all peers in interleaved rounds, in turns of about `seconds`."""
    # Per peer, "ms" is the median over rounds of a step's median, "ratio" that to sparsecore's.
    integers(1).check("rounds", rounds)
    reasons = {key: peer.absent(problem) for key, peer in PEERS.items()}
    gone = {key: reason for key, reason in reasons.items() if reason is not None}
    blas: dict[str, list[str]] = {}
    with ExitStack() as stack:
        one = partial(ProcessPoolExecutor, 1, get_context("spawn"))
        pools = {key: stack.enter_context(one()) for key in PEERS if key not in gone}
        # All are made at once: that is not timed.
        with patch.dict(os.environ, dict.fromkeys(_THREADS, str(problem.threads))):
            made = {key: pool.submit(_make, key, problem) for key, pool in pools.items()}
        for key, pool in pools.items():
            progress(f"starting {PEERS[key].label}")
            with _lost(key, gone):
                made[key].result()
                blas[key] = pool.submit(_warm_up, key, seconds).result()
        order = list(blas)
        turns: dict[str, list[dict[str, float]]] = {key: [] for key in order}
        meetings = [meeting_seconds(problem.threads)]
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            for key in order:
                time.sleep(_PAUSE)
                with _lost(key, gone):
                    turns[key].append(pools[key].submit(_turn).result())
            # No peer always follows the same one.
            order = [key for key in order[1:] + order[:1] if key not in gone]
        meetings.append(meeting_seconds(problem.threads))
        turns = {key: some for key, some in turns.items() if key not in gone}
        memory = {key: pools[key].submit(peak_bytes).result() for key in turns}
    ours = np.array([turn["ms"] for turn in turns["sparsecore"]])
    return {
        "problem": {
            **problem.config.with_values(hidden=problem.sizes[1:-1]).to_dict(),
            "sizes": list(problem.sizes), "threads": problem.threads, "seed": problem.seed,
        },
        "nnz": problem.model.nnz,
        "meeting_us": [1e6 * seconds for seconds in meetings],
        "peers": {
            key: {
                **_summary(turns[key], ours), "label": PEERS[key].label, "note": PEERS[key].note,
                "version": PEERS[key].version(), "blas": blas[key],
                "peak_rss_mb": round(memory[key] / 2**20, 1),
            }
            for key in turns
        },
        "absent": {key: {"label": PEERS[key].label, "reason": gone[key]} for key in gone},
        "provenance": provenance(problem.threads, None),
    }  # fmt: skip


@contextmanager
def _lost(key: str, gone: dict[str, str]) -> Iterator[None]:
    """Note in `gone` why a peer fails; without sparsecore itself there is no contest."""
    try:
        yield
    except BrokenProcessPool:
        gone[key] = "failed: its process died"
    except Exception as error:  # whatever a foreign library raises
        traceback.print_exc()
        gone[key] = f"failed: {type(error).__name__}: {error}"
    if "sparsecore" in gone:
        raise RuntimeError(f"sparsecore itself {gone['sparsecore']}")


def _summary(turns: list[dict[str, float]], ours: np.ndarray) -> dict[str, Any]:
    ms = np.array([turn["ms"] for turn in turns])
    return {
        **{name: float(np.median([turn[name] for turn in turns])) for name in turns[0]},
        "low": float(ms.min()), "high": float(ms.max()), "rounds": ms.tolist(),
        "ratio": spread(ms / ours),
    }  # fmt: skip


def report(result: dict[str, Any]) -> str:
    """Return the result of `compare` as a plain-text table, the fastest peer first."""
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
        lines.append(f"the threads synchronise in {before:.2f} us before, {after:.2f} us after")
    lines += [f"{left['label']:24} {left['reason']}" for left in result["absent"].values()]
    lines += [f"{found['label']}: {found['note']}" for found in result["peers"].values()]
    return "\n".join(lines)


def stopwatch(peer: Adapter, seconds: float) -> Callable[[], dict[str, float]]:
    """Compile and fill caches; return a function that times calls for `seconds`, at least one."""
    rng, problem = np.random.default_rng(0), peer.problem

    def turn(seconds: float, steps: int) -> dict[str, float]:
        n, size = len(problem.data[1]), steps * problem.config.batch_size
        times: list[float] = []
        begin, cpu = time.perf_counter(), time.process_time()
        while not times or time.perf_counter() - begin < seconds:
            times.append(timed(partial(peer.train, rng.integers(n, size=size)))[0])
        wall, own = time.perf_counter() - begin, time.process_time() - cpu
        return {"ms": 1e3 * float(np.median(times)) / steps, "cores": own / wall}

    turn(0, 1)
    ms = turn(seconds / 2, 1)["ms"]
    steps = int(np.clip(1e3 * seconds / 4 / ms, 1, _STEPS_PER_CALL))
    turn(0, steps)
    return partial(turn, seconds, steps)


# --- in a peer's process -------------------------------------------------------------------------

_held: dict[str, Any] = {}  # the "peer", and the "turn" that times it


def _make(key: str, problem: Problem) -> None:
    if key == "jax-dense" and hasattr(os, "sched_setaffinity"):
        # XLA uses one thread per CPU that it may use, and has no other setting.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: problem.threads])
    _held["peer"] = PEERS[key](problem)


def _warm_up(key: str, seconds: float) -> list[str]:
    """Prepare the turns; return the BLAS libraries that are timed."""
    _held["turn"] = stopwatch(_held["peer"], seconds)
    return loaded_blas() if key in _THROUGH_BLAS else []


def _turn() -> dict[str, float]:
    return dict(_held["turn"]())
