"""WASAP-SGD and WASSP-SGD: parallel training by sparse workers and a parameter server in a window.

`run` is called by all ranks of an MPI job, `replay` by one process. Importing this package does not
start MPI; the first use of `run`, or of `mpi`, does.
"""

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
    if name == "run":
        from sparsecore.wasap import phases

        return phases.run
    if name in ("from_json", "replay"):
        from sparsecore.wasap import record

        return getattr(record, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
