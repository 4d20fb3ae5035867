"""Parallel training from a notebook, on MPI engines of ipyparallel that run or are started here.

`connect` yields a cluster; `train` runs `wasap` on its engines and shows progress.
"""

from sparsecore.cluster.engines import Cluster, ClusterError, WorkerError, connect, mpiexec
from sparsecore.cluster.training import train

__all__ = ["Cluster", "ClusterError", "WorkerError", "connect", "mpiexec", "train"]
