"""WASAP-SGD and WASSP-SGD: parallel training by sparse workers and a parameter server in a window.

`run` is called by all ranks of an MPI job, `replay` by one process. Importing this package does not
start MPI; the first use of `run`, or of `mpi`, does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparsecore.wasap.plan import ALGORITHMS, Plan
from sparsecore.wasap.watch import ParallelError

if TYPE_CHECKING:
    from sparsecore.wasap.phases import run
    from sparsecore.wasap.record import from_json, replay

__all__ = ["ALGORITHMS", "ParallelError", "Plan", "from_json", "replay", "run"]


def __getattr__(name: str) -> Any:
    # Imported on use: importing mpi4py starts MPI, which a replay does not need, and `Plan` does
    # not need Numba.
    if name in (places := {"run": "phases", "from_json": "record", "replay": "record"}):
        return getattr(import_module(f"sparsecore.wasap.{places[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
