"""What the options of several commands have in common."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def sizes(text: str) -> tuple[int, ...]:
    """Read integers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers separated by commas, such as 1000,1000, got {text!r}"
        ) from None


def names(text: str) -> tuple[str, ...]:
    """Read names separated by commas."""
    return tuple(text.split(","))


def whole(text: str) -> int:
    """Read a whole number, which may be written as 2e8."""
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number, such as 50 or 2e8, got {text!r}")


def ranks_here() -> int:
    """Return how many processes this one was started with by MPI, without starting MPI; 1 if none.

    MPICH and those made of it, Open MPI, and Slurm's own start say it in the environment.
    """
    names = "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"
    return max(int(os.environ.get(name, 1)) for name in names)


def check_target(option: str, name: str | None) -> None:
    """Refuse a file that could not be written at the end of a run; its folder may be made yet."""
    if name is None:
        return
    path = Path(name)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise ValueError(f"{option}: expected a file, got the folder {name}")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"{option}: expected a file that can be written, got {name}: {folder} is no folder "
            "with permission to write"
        )


def check_common(options: argparse.Namespace) -> None:
    """Refuse wrong `threads` and `seed`; warn of more threads than CPUs."""
    from sparsecore.compiled.team import cpu_count  # not above: Numba takes half a second

    if options.threads < 1:
        raise ValueError(f"--threads: expected an integer of at least 1, got {options.threads}")
    if options.seed < 0:
        raise ValueError(f"--seed: expected an integer of at least 0, got {options.seed}")
    if options.threads > cpu_count():
        print(
            f"sparsecore: {options.threads} threads on {cpu_count()} CPUs will wait for each other",
            file=sys.stderr,
        )
