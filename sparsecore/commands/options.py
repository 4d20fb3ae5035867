"""What the options of several commands have in common."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import MISSING
from typing import Any

from sparsecore.config import HYPERPARAMETERS, Hyperparameter, integers
from sparsecore.files import check_writable
from sparsecore.limits import cpu_count
from sparsecore.settings import SETTINGS

#: Errors whose text says all that a user needs; any other error is a bug.
EXPECTED = (ValueError, FloatingPointError, OSError, RuntimeError, MemoryError)


def _several(kind: type, expected: str, example: str = "") -> Callable[[str], tuple[Any, ...]]:
    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(map(kind, text.split(",")))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected {expected} separated by commas, such as {example}, got {text!r}"
            ) from None

    return read


sizes = _several(int, "integers", "1000,1000")
numbers = _several(float, "numbers", "0,0.0002")
names = _several(str, "names")


def whole(text: str) -> int:
    """Read a whole number, which may be written as 2e8."""
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number, such as 50 or 2e8, got {text!r}")


def hyperparameter(group: Any, about: Hyperparameter, default: str | None = None) -> None:
    """Add a hyperparameter's option, and show its default; its value is None if not given."""
    options = [f"--{about.name.replace('_', '-')}"] + ["--batch"] * (about.name == "batch_size")
    given = about.default is not MISSING
    shown = f" ({default or _shown(about.default)})" if given else ""
    if about.range.kind is bool:
        action = argparse.BooleanOptionalAction
        group.add_argument(*options, action=action, default=None, help=about.help + shown)
        return
    expected = about.range.expected.removesuffix(", or None")
    group.add_argument(
        *options, dest=about.name,
        type={tuple: sizes, int: whole}.get(about.range.kind, about.range.kind), required=not given,
        metavar=about.metavar, help=f"{about.help}, {expected}{shown}",
    )  # fmt: skip


def study_default(name: str) -> str:
    """Return a hyperparameter's default, and the data sets with another one if they share it."""
    values = {dataset: getattr(setting.default, name) for dataset, setting in SETTINGS.items()}
    default = HYPERPARAMETERS[name].default
    others = {dataset: _shown(value) for dataset, value in values.items() if value != default}
    if len(different := {*others.values()}) > 1:
        return f"fashion-mnist: {_shown(values['fashion-mnist'])}"
    return "; ".join([_shown(default), *(f"{', '.join(others)}: {one}" for one in different)])


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of those options that were given."""
    values = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def changed(options: argparse.Namespace) -> list[str]:
    """Return the names of the options that differ from their defaults."""
    return [name for name, value in vars(options).items() if value != options.default(name)]


def refuse(names: Iterable[str], why: str) -> None:
    """Raise a ValueError that names the first of these options, if there is any."""
    for name in names:
        raise ValueError(f"--{name.replace('_', '-')}: {why}")


def result_options(
    sub: argparse.ArgumentParser, resumed: str, seeded: str = "", threads: int | None = None
) -> None:
    """Add the options of a run that can be resumed and that prints its result."""
    seed = (
        "seed of all random numbers; on CPUs of the same lane width (values that a "
        f"kernel handles at once) it determines the weights bit for bit{seeded} (%(default)s)"
    )
    sub.add_argument("--seed", type=int, default=0, help=seed)
    text = f"threads per process; they do not change the result ({threads or 'all CPUs'})"
    sub.add_argument("--threads", type=int, default=threads, help=text)
    text = f"resume from the file of --checkpoint if it exists; {resumed}"
    sub.add_argument("--resume", action="store_true", help=text)
    sub.add_argument(
        "--json", action="store_true", help="print the result as one JSON object, on the last line"
    )


def error_text(error: BaseException) -> str:
    """Return the text to show for an error, which may have none."""
    if isinstance(error, MemoryError):
        return ": ".join(filter(None, ("not enough memory", str(error))))
    interrupted = isinstance(error, KeyboardInterrupt)
    return str(error) or ("interrupted" if interrupted else type(error).__name__)


def fail(
    rank: int, error: BaseException, hint: str = "", command: str = "sparsecore train"
) -> None:
    """Print why a rank cannot continue; for a bug, print the traceback, too."""
    if isinstance(error, Exception) and not isinstance(error, EXPECTED):
        traceback.print_exception(error)
    say(f"rank {rank}: {error_text(error)}{hint}", command)


def say(what: str, command: str = "sparsecore train") -> None:
    """Print a line of diagnostics, in one piece: other ranks print, too."""
    print(f"{command}: {what}\n", end="", file=sys.stderr, flush=True)


def warn_of_twins(remedy: str, command: str = "sparsecore train") -> None:
    """Warn if all ranks of an MPI job (MPICH's, Open MPI's or srun's) do the same work."""
    names = "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"
    if any(int(os.environ.get(name, 1)) > 1 for name in names):
        say(f"every rank trains the same network on its own; {remedy}", command)


def refuse_idle(
    options: argparse.Namespace, epochs: int, prune_from: int | None, activation: str
) -> None:
    """Refuse pruning that comes too late, its options without --prune-from, a slope with ReLU."""
    if activation == "relu":
        refuse(given(options, ("alpha",)), "expected --activation leaky-relu or all-relu, got relu")
    if prune_from is None:
        alone = given(options, ("prune_every", "prune_percentile", "prune_counts_empty"))
        refuse(alone, "expected --prune-from EPOCH with it, got none")
    elif prune_from >= epochs and options.checkpoint is None:  # else it may resume with more epochs
        told = f"expected an epoch before the last, which is {epochs}, got {prune_from}"
        refuse(["prune_from"], told)


def check_targets(options: argparse.Namespace) -> None:
    """Refuse `out` and `checkpoint` that could not be written, or would replace each other."""
    targets = {}
    for name, path in given(options, ("checkpoint", "out")).items():
        try:
            targets[name] = str(check_writable(path))
        except OSError as error:
            raise ValueError(f"--{name}: {error}") from None
    beside = targets.get("out", "").removeprefix(targets.get("checkpoint", "?"))
    if re.fullmatch(r"(\.worker\d+)?(\.previous)?", beside) and len(targets) == 2:
        raise ValueError(
            f"--out: expected a file other than those of --checkpoint, got {options.out}, where "
            "the state of the run is saved"
        )
    for name, path in given(options, ("data", "test")).items():
        if os.path.realpath(path) in targets.values():
            raise ValueError(f"--out: expected a file other than that of --{name}, got {path}")


def check_common(options: argparse.Namespace) -> None:
    """Refuse wrong `threads`, `seed` and `resume`; warn of more threads than CPUs."""
    integers(1).check("--threads", options.threads)
    integers(0).check("--seed", options.seed)
    if getattr(options, "resume", False) and options.checkpoint is None:
        raise ValueError("--resume: expected --checkpoint FILE to resume from, got none")
    if options.threads > cpu_count():
        threads = f"{options.threads} threads on {cpu_count()} CPUs"
        say(f"{threads} will wait for each other; use at most {cpu_count()}", "sparsecore")
