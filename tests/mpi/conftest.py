"""The suite of an MPI job, all of it on every rank: ``mpiexec -n 3 pytest tests/mpi``."""

import time

import pytest

MPI = pytest.importorskip("mpi4py.MPI", reason="the parallel tests need mpi4py and an MPI")


def pytest_report_header(config):
    vendor, version = MPI.get_vendor()
    comm = MPI.COMM_WORLD
    return f"MPI: {vendor} {'.'.join(map(str, version))}, rank {comm.rank} of {comm.size}"


@pytest.fixture
def comm():
    """All ranks, here at the same time."""
    here, end = MPI.COMM_WORLD.Ibarrier(), time.monotonic() + 60
    while not here.Test():
        assert time.monotonic() < end, "the other ranks did not come to this test"
        time.sleep(1e-3)
    return MPI.COMM_WORLD
