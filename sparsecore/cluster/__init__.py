"""Parallel training from a notebook: MPI engines of ipyparallel, found or started, and driven.

`connect` gives a cluster, `train` runs `wasap` on its engines and shows how it goes. What the
engines do is written in `wasap`.

A cluster is started in a terminal with ``ipcluster start --engines=MPI -n 6``, or by `connect` for
as long as its block lasts.
"""

from sparsecore.cluster.engines import Cluster, ClusterError, WorkerError, connect, mpiexec
from sparsecore.cluster.training import train

__all__ = ["Cluster", "ClusterError", "WorkerError", "connect", "mpiexec", "train"]
