"""T-extreme: the runs of the extreme study.

Each run is a process of its own, the command ``python -m sparsecore extreme``: peak memory is known
only for the whole life of a process. The quick profile has the runs that take less than half a
minute. `figures` draws the results.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import cluster
from sparsecore.datasets import DataError
from sparsecore.paper.store import Entry, Parts, Result, measured
from sparsecore.provenance import check_sources
from sparsecore.settings import DECAYS

STUDY = "T-extreme"
#: Neurons of a bat's brain, the size of the claim.
BAT = 50_000_000


@dataclass(frozen=True, order=True)
class Row:
    """A run of a network: hidden neurons in all, and hidden layers, which may be frozen."""

    neurons: int
    hidden_layers: int
    frozen: bool = False
    decay: float = DECAYS[0]
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the result file."""
        told = f"{self.neurons}-in-{self.hidden_layers}" + "-frozen" * self.frozen
        told += f"-decay{self.decay:g}" * (self.decay != DECAYS[0])
        return told + f"-seed{self.seed}" * bool(self.seed)


ROWS = (
    *(Row(n * 100_000, d) for n in (5, 10, 50, 100, 500) for d in (1, 3, 10)),
    *(Row(100_000_000, d) for d in (2, 10)),
    Row(200_000_000, 10),
)
#: The control of C4: what the output layer learns from random hidden layers.
CONTROLS = tuple(Row(BAT, depth, frozen=True) for depth in (1, 3))  # 10: below
#: More runs for C4: at both weight decays, with three seeds.
SEEDS = tuple(
    Row(BAT, 10, frozen, decay, seed)
    for frozen in (False, True) for decay in DECAYS for seed in range(3)
)  # fmt: skip
#: Rows that two cores finish in about ten seconds.
LIVE = tuple(row for row in ROWS if row.neurons <= 1_000_000 and row.hidden_layers == 10)
#: The study's results: of the table's networks, and of `PARTS`.
Found = dict[Row | str, Result]


def _parts(profile: str) -> Parts:
    parts: Parts = {}
    for row in ROWS + CONTROLS + SEEDS if profile == "paper" else LIVE:
        expected: dict[str, Any] = {"seed": row.seed, "config.weight_decay": row.decay}
        expected |= {"config.neurons": row.neurons, "config.hidden_layers": row.hidden_layers}
        expected |= {"config.frozen": True} if row.frozen else {}
        entry = Entry(STUDY, row.name, profile, partial(dict, expected))
        more = "--weight-decay", row.decay, "--seed", row.seed, *["--frozen"] * row.frozen
        parts[row] = entry, partial(_result, [], row.neurons, row.hidden_layers, *more)
    for name, (measure, neurons) in PARTS.items():
        entry = Entry(STUDY, name, profile)
        parts[name] = entry, partial(measure, neurons[profile])
    return parts


def _page(found: Found) -> Found:
    """Leave out networks that could not be trained."""
    return {key: r for key, r in found.items() if isinstance(key, str) or "missing" not in r}


entries, recorded, load = measured(_parts, _page)


def networks(found: Found) -> list[Result]:
    """Return the runs of the table, by size."""
    return [found[row] for row in ROWS if row in found]


def compare(neurons: int) -> Result:
    """Train a network on two ranks and on one; raise ClusterError if there is no MPI."""
    mpiexec = cluster.mpiexec()
    size = neurons, 10, "--zeta", 0, "--steps", 10, "--held-out", 0, "--threads", 1
    whole, split = _result([], *size), _result([mpiexec, "-n", "2"], *size, "--split")
    apart = np.abs(np.subtract(whole["losses"], split["losses"])).max()
    return {"whole": whole, "split": split, "largest_difference": float(apart)}


def survive(neurons: int) -> Result:
    """Kill a run after its first checkpoint, resume it, and compare it with an unbroken one."""
    few = neurons, 10, "--steps", 4, "--evolve-every", 1, "--held-out", 4
    whole = _result([], *few)  # first: it fails if this machine cannot train it
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.npz"
        saved = *few, "--checkpoint", file, "--checkpoint-every", 2, "--resume"
        running = subprocess.Popen(
            _command([], *saved), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not file.exists() and running.poll() is None:
                time.sleep(0.01)
        finally:  # an interrupt, too, ends it
            running.kill()  # SIGKILL
            status = running.wait()
        if status != -signal.SIGKILL:  # else "resumed" would be a whole run
            raise RuntimeError(f"the run of {neurons:,} neurons ended before the kill; use more")
        resumed, size = _result([], *saved), file.stat().st_size
    same = all(whole[name] == resumed[name] for name in ("weights_sha256", "losses", "test"))
    return {"whole": whole, "resumed": resumed, "identical": same, "file_bytes": size}


#: Measurements beside the table: function, and neurons by profile.
PARTS: dict[str, tuple[Callable[[int], Result], dict[str, int]]] = {
    "split": (compare, {"quick": 300_000, "paper": 10_000_000}),
    "survival": (survive, {"quick": 300_000, "paper": 200_000_000}),
}


def _command(before: list[str], neurons: int, hidden_layers: int, *more: object) -> list[str]:
    options = "--json", "--neurons", neurons, "--hidden-layers", hidden_layers, *more
    return [*before, sys.executable, "-m", "sparsecore", "extreme", *map(str, options)]


def _result(before: list[str], neurons: int, hidden_layers: int, *more: object) -> Result:
    """Run the command and return its result; raise RuntimeError with its last line if it fails."""
    # DataError, a RuntimeError, for lack of memory: other networks may still fit.
    check_sources()  # another process will read the sources anew
    command = _command(before, neurons, hidden_layers, *more)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.splitlines() or ["no message"])[-1]
        kind = DataError if "free memory: expected" in last else RuntimeError
        raise kind(f"{' '.join(command)}: {last}")
    return json.loads(done.stdout)
