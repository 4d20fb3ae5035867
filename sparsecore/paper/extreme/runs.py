"""T-extreme: the runs of the extreme study, and how one comes by them: run or load.

Each run is a process of its own, the command ``python -m sparsecore extreme``, since the most
memory that a process has had can only be asked of the whole process; its result is one JSON file.
The `quick` profile runs what takes under half a minute where the book is built; the `paper` profile
is recorded once, in all sizes, and shown beside it. Drawing is for `extreme_figures`.
"""

from __future__ import annotations

import json
import os
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
from tqdm.auto import tqdm

from sparsecore import cluster
from sparsecore.compiled.team import cpu_count
from sparsecore.paper import results
from sparsecore.paper.measurements import Measurements
from sparsecore.paper.training.conditions import current_profile
from sparsecore.provenance import provenance

Result = dict[str, Any]

STUDY = "T-extreme"
#: Neurons of a bat's brain, the size of the claim.
BAT = 50_000_000


@dataclass(frozen=True, order=True)
class Row:
    """A network of the table.

    Attributes
    ----------
    neurons : int
        Hidden neurons in all.
    hidden_layers : int
    """

    neurons: int
    hidden_layers: int

    @property
    def name(self) -> str:
        """Name of the result file."""
        return f"{self.neurons}-in-{self.hidden_layers}"


ROWS = (
    *(Row(n, d) for n in (500_000, 1_000_000, 5_000_000, 10_000_000) for d in (1, 3, 10)),
    *(Row(50_000_000, d) for d in (1, 3, 10)),
    *(Row(100_000_000, d) for d in (2, 10)),
    Row(200_000_000, 10),
)
#: Those that two cores finish in less than half a minute.
LIVE = tuple(row for row in ROWS if row.neurons <= 5_000_000 and row.hidden_layers == 10)
#: Neurons of the measurements beside the table, by profile.
SIZES = {
    "split": {"quick": 300_000, "paper": 10_000_000},
    "survival": {"quick": 300_000, "paper": 200_000_000},
}


@dataclass(frozen=True)
class Extreme:
    """The study's results.

    Attributes
    ----------
    profile : str
        Of this build.
    here : dict of Row to dict
        Run by it, or by an earlier one on this machine.
    recorded : dict of Row to dict
        Of the recorded `paper` profile; empty if this build is of that profile.
    parts : dict of str to dict
        Results of `PARTS`, each by "recorded" and "this build", where they are there.
    """

    profile: str
    here: dict[Row, Result]
    recorded: dict[Row, Result]
    parts: dict[str, dict[str, Result]]

    def rows(self) -> list[tuple[Row, str, Result]]:
        """Return all results by size, each with "recorded" or "this build"."""
        title = "recorded" if self.profile == "paper" else "this build"
        found = [(row, "recorded", result) for row, result in self.recorded.items()]
        found += [(row, title, result) for row, result in self.here.items()]
        return sorted(found, key=lambda entry: entry[:2])

    def __repr__(self) -> str:
        return f"<Extreme {self.profile}: {len(self.here)} here, {len(self.recorded)} recorded>"


def _rows(profile: str) -> tuple[Row, ...]:
    return ROWS if profile == "paper" else LIVE


FILES = Measurements(
    STUDY,
    lambda: results.code_sha256("sparsecore.extreme.run"),
    lambda profile: [*(row.name for row in _rows(profile)), *PARTS],
)


def recorded() -> dict[Row, Result]:
    """Return what is recorded of the `paper` profile, without running anything."""
    found = {row: FILES.read(row.name, "paper") for row in ROWS}
    return {row: result for row, result in found.items() if result is not None}


def load(profile: str | None = None, *, progress: bool = True) -> Extreme:
    """Return all results; run those of the profile that are missing, stale or of another machine.

    Parameters
    ----------
    profile : {"quick", "paper"}, optional
        See `conditions.current_profile`.
    progress : bool
        Say on standard error what is being run.

    Raises
    ------
    ValueError
        If there is no such profile.
    RuntimeError
        If a run fails, with what it said.
    """
    profile = current_profile(profile)
    rows = _rows(profile)
    works: dict[Row | str, tuple[str, Callable[[], Result | None]]] = {
        row: (row.name, partial(_result, [], row.neurons, row.hidden_layers)) for row in rows
    }
    works |= {name: (name, partial(part, SIZES[name][profile])) for name, part in PARTS.items()}
    found: dict[Row | str, Result] = {}
    with tqdm(
        total=len(works), disable=not progress, bar_format="{desc} ({n}/{total})",
        mininterval=0.5 if sys.stderr.isatty() else 10,
    ) as bar:  # fmt: skip
        for key, (name, work) in works.items():
            bar.set_description_str(name)
            result = _kept(name, profile, work)
            if result is not None:
                found[key] = result
            bar.update()
    title = "recorded" if profile == "paper" else "this build"
    parts = {name: {title: found[name]} if name in found else {} for name in PARTS}
    for name in PARTS if profile != "paper" else ():
        if (other := FILES.read(name, "paper")) is not None:
            parts[name] = {"recorded": other} | parts[name]
    here = {row: found[row] for row in rows}
    return Extreme(profile, here, {} if profile == "paper" else recorded(), parts)


def _kept(name: str, profile: str, work: Callable[[], Result | None]) -> Result | None:
    """Return a result that is there and valid, or what `work` makes, and keep that."""
    there = FILES.valid(name, profile)
    if there is not None:
        return there
    made = work()
    if made is None:
        return None
    made.setdefault("provenance", provenance(cpu_count(), None))
    if hasattr(os, "getloadavg"):  # of the last quarter of an hour: whether it had the cores
        made["provenance"]["load_after"] = os.getloadavg()[2]
    return FILES.write(name, profile, made)


# --- what is measured ----------------------------------------------------------------------------


def compare(neurons: int) -> Result | None:
    """Train a network on two ranks and on one.

    Returns
    -------
    dict or None
        "whole" and "split", the results, and "largest_difference" of their losses; None if there
        is no MPI.
    """
    try:
        mpiexec = cluster.mpiexec()
    except cluster.ClusterError:
        return None
    size = neurons, 10, "--zeta", 0, "--steps", 10, "--held-out", 0, "--threads", 1
    whole, split = _result([], *size), _result([mpiexec, "-n", "2"], *size, "--split")
    apart = np.abs(np.subtract(whole["losses"], split["losses"])).max()
    return {"whole": whole, "split": split, "largest_difference": float(apart)}


def survive(neurons: int) -> Result:
    """Kill a run after its first checkpoint, let it go on, and compare it with one that was not.

    Returns
    -------
    dict
        "whole" and "resumed", the results, "identical", whether weights and losses are, to the
        last bit, and "file_bytes" of the checkpoint.
    """
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
        if running.wait() == 0:
            raise RuntimeError("the run was over before it could be killed; take more neurons")
        resumed, size = _result([], *saved), file.stat().st_size
    whole = _result([], *few)
    same = all(whole[name] == resumed[name] for name in ("weights_sha256", "losses", "test"))
    return {"whole": whole, "resumed": resumed, "identical": same, "file_bytes": size}


#: What is measured beside the table, for a number of neurons.
PARTS: dict[str, Callable[[int], Result | None]] = {
    "split": compare,
    "survival": survive,
}


def _command(before: list[str], neurons: int, hidden_layers: int, *more: object) -> list[str]:
    options = "--json", "--neurons", neurons, "--hidden-layers", hidden_layers, *more
    return [*before, sys.executable, "-m", "sparsecore", "extreme", *map(str, options)]


def _result(before: list[str], neurons: int, hidden_layers: int, *more: object) -> Result:
    """Run the command and return its result."""
    command = _command(before, neurons, hidden_layers, *more)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.splitlines()[-1:]}")
    return json.loads(done.stdout)
