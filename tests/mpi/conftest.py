"""The suite of an MPI job, all of it on every rank: ``mpiexec -n 3 pytest tests/mpi``."""

import pytest

MPI = pytest.importorskip("mpi4py.MPI", reason="the parallel tests need mpi4py and an MPI")


def pytest_report_header(config):
    vendor, version = MPI.get_vendor()
    comm = MPI.COMM_WORLD
    return f"MPI: {vendor} {'.'.join(map(str, version))}, rank {comm.rank} of {comm.size}"


@pytest.fixture
def comm():
    """All ranks, here at the same time."""
    from sparsecore.wasap.mpi import Ranks

    assert Ranks().barrier(limit=60), "the other ranks did not come to this test"
    return MPI.COMM_WORLD
