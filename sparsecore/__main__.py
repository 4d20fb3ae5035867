"""The command line: ``sparsecore`` or ``python -m sparsecore``, then train, predict or others.

The commands are in `commands`. Diagnostics go to standard error, so that standard output can be
piped. A mistake in the options ends with status 2, any other error with 1 and one line that names
it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsecore import __version__
from sparsecore.commands import bench, data, extreme, study, table, train

_MPI = ("mpi4py", "ipyparallel", "IPython", "traitlets")  # the rest of what is optional is "book"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(argv)
    try:
        options.function(options)
    except MemoryError as error:
        print(f"sparsecore {options.command}: not enough memory: {error}", file=sys.stderr)
        return 1
    except (ValueError, FloatingPointError, OSError, RuntimeError) as error:
        print(f"sparsecore {options.command}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        extra = "mpi" if error.name in _MPI else "book"
        print(
            f"sparsecore {options.command}: needs {error.name}, which is not installed; "
            f"in a checkout: pip install -e '.[{extra}]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"sparsecore {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


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
