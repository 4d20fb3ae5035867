"""WASAP-SGD and WASSP-SGD: parallel training by sparse workers and a parameter server in a window.

`run` is called by all ranks of an MPI job, `replay` by one process. MPI is imported with `run`, and
nowhere else in the package.
"""

from typing import TYPE_CHECKING, Any

from sparsecore.wasap.place import ParallelError

if TYPE_CHECKING:
    from sparsecore.wasap.phases import run
    from sparsecore.wasap.plan import ALGORITHMS, Plan
    from sparsecore.wasap.record import from_json, replay

__all__ = ["ALGORITHMS", "ParallelError", "Plan", "from_json", "replay", "run"]


def __getattr__(name: str) -> Any:
    # Importing mpi4py starts MPI, which those who only want a replay should not need.
    if name == "run":
        from sparsecore.wasap import phases

        return phases.run
    if name in __all__:
        from sparsecore.wasap import plan, record

        return getattr(plan if name in plan.__dict__ else record, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
