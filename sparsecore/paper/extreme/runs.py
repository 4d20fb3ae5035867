"""T-extreme: the runs of the extreme study.

Each run is a process of its own, the command ``python -m sparsecore extreme``: the most memory that
a process has had is known for its whole life only. The quick profile runs what takes less than half
a minute. `figures` draws the results.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import cluster
from sparsecore.limits import cpu_count
from sparsecore.paper.store import Entry, Result, at_hand, current_profile
from sparsecore.progress import bar
from sparsecore.provenance import busy_cpus, provenance

STUDY = "T-extreme"
#: Neurons of a bat's brain, the size of the claim.
BAT = 50_000_000

_NUMBER = (int, float)
SCHEMA: dict[str, Any] = {
    "config": {"neurons": int, "hidden_layers": int},
    **dict.fromkeys(("seed", "neurons", "nnz", "budget_bytes", "peak_bytes"), int),
    "seconds": {"initialise": _NUMBER, "train": _NUMBER},
    "seconds_per_sample": _NUMBER,
    "losses": list,
    "weights_sha256": str,
}
SCHEMAS: dict[str, Any] = {
    "split": {"whole": dict, "split": dict, "largest_difference": _NUMBER},
    "survival": {"whole": SCHEMA, "resumed": SCHEMA, "identical": bool, "file_bytes": int},
}


@dataclass(frozen=True, order=True)
class Row:
    """A network of the table: hidden neurons in all, and hidden layers, which may be frozen."""

    neurons: int
    hidden_layers: int
    frozen: bool = False

    @property
    def name(self) -> str:
        """Name of the result file."""
        return f"{self.neurons}-in-{self.hidden_layers}" + "-frozen" * self.frozen


ROWS = (
    *(Row(n * 100_000, d) for n in (5, 10, 50, 100, 500) for d in (1, 3, 10)),
    *(Row(100_000_000, d) for d in (2, 10)),
    Row(200_000_000, 10),
)
#: The control of C4: what the output layer learns of random hidden layers.
CONTROLS = tuple(Row(BAT, depth, frozen=True) for depth in (1, 3, 10))
#: Those that two cores finish in about ten seconds.
LIVE = tuple(row for row in ROWS if row.neurons <= 1_000_000 and row.hidden_layers == 10)
#: Neurons of the measurements beside the table, by profile.
SIZES = {
    "split": {"quick": 300_000, "paper": 10_000_000},
    "survival": {"quick": 300_000, "paper": 200_000_000},
}


#: The study's results: of the table's networks, and of `PARTS`.
Found = dict[Row | str, Result]


def _entry(key: Row | str, profile: str) -> Entry:
    if isinstance(key, str):
        return Entry(STUDY, key, profile, lambda result: SCHEMAS[key])
    expected = {"config.neurons": key.neurons, "config.hidden_layers": key.hidden_layers}
    expected |= {"config.frozen": True} if key.frozen else {}
    return Entry(STUDY, key.name, profile, lambda result: SCHEMA, lambda: expected)


def _keys(profile: str) -> tuple[Row | str, ...]:
    return (*(ROWS + CONTROLS if profile == "paper" else LIVE), *PARTS)


def entries(profile: str) -> list[Entry]:
    """Return the results that a profile is made of."""
    return [_entry(key, profile) for key in _keys(profile)]


def recorded() -> Found:
    """Return what is recorded; run what is missing only if that is this build's own profile."""
    if current_profile() == "paper":
        return load()
    return {key: run for key in _keys("paper") if (run := _entry(key, "paper").recorded())}


def load(profile: str | None = None, *, progress: bool = True) -> Found:
    """Return a profile's results; run what is missing and can be run here."""
    profile, found = current_profile(profile), {}
    keys = _keys(profile)
    with bar(len(keys), bar_format="{desc} ({n}/{total})", hidden=not progress) as shown:
        for key in keys:
            shown.set_description_str(key if isinstance(key, str) else key.name)
            measure = partial(_measure, key, profile)
            found[key] = at_hand(partial(_entry(key, profile).obtain, measure))
            shown.update()
    return found


def networks(found: Found, rows: Sequence[Row] | None = None) -> list[Result]:
    """Return the runs of rows, or the table's, by size."""
    return [found[key] for key in (ROWS if rows is None else rows) if key in found]


def _measure(key: Row | str, profile: str) -> Result:
    found = {"others": busy_cpus(), "provenance": provenance(cpu_count(), None)}
    if isinstance(key, str):
        return found | PARTS[key](SIZES[key][profile])
    return found | _result([], key.neurons, key.hidden_layers, *["--frozen"] * key.frozen)


# --- what is measured ----------------------------------------------------------------------------


def compare(neurons: int) -> Result:
    """Train a network on two ranks and on one; raise ClusterError if there is no MPI."""
    mpiexec = cluster.mpiexec()
    size = neurons, 10, "--zeta", 0, "--steps", 10, "--held-out", 0, "--threads", 1
    whole, split = _result([], *size), _result([mpiexec, "-n", "2"], *size, "--split")
    apart = np.abs(np.subtract(whole["losses"], split["losses"])).max()
    return {"whole": whole, "split": split, "largest_difference": float(apart)}


def survive(neurons: int) -> Result:
    """Kill a run after its first checkpoint, resume it, and compare it with one left alone."""
    few = neurons, 10, "--steps", 4, "--evolve-every", 1, "--held-out", 4
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.npz"
        saved = *few, "--checkpoint", file, "--checkpoint-every", 2, "--resume"
        running = subprocess.Popen(
            _command([], *saved), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not file.exists() and running.poll() is None:
            time.sleep(0.01)
        running.kill()  # SIGKILL
        if running.wait() != -signal.SIGKILL:  # else "resumed" would be a whole run
            raise RuntimeError("the run was over before it could be killed; take more neurons")
        resumed, size = _result([], *saved), file.stat().st_size
    whole = _result([], *few)
    same = all(whole[name] == resumed[name] for name in ("weights_sha256", "losses", "test"))
    return {"whole": whole, "resumed": resumed, "identical": same, "file_bytes": size}


#: What is measured beside the table, for a number of neurons.
PARTS: dict[str, Callable[[int], Result]] = {"split": compare, "survival": survive}


def _command(before: list[str], neurons: int, hidden_layers: int, *more: object) -> list[str]:
    options = "--json", "--neurons", neurons, "--hidden-layers", hidden_layers, *more
    return [*before, sys.executable, "-m", "sparsecore", "extreme", *map(str, options)]


def _result(before: list[str], neurons: int, hidden_layers: int, *more: object) -> Result:
    """Run the command and return its result; raise RuntimeError, with what it said, if it fails."""
    command = _command(before, neurons, hidden_layers, *more)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.splitlines()[-1:]}")
    return json.loads(done.stdout)
