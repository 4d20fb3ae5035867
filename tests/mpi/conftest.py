"""The suite of an MPI job, all of it on every rank: ``mpiexec -n 3 pytest tests/mpi``."""

import time

import pytest

from sparsecore.wasap.mpi import MPI


def pytest_report_header():
    (name, version), world = MPI.get_vendor(), MPI.COMM_WORLD
    return f"{name} {'.'.join(map(str, version))}, rank {world.rank} of {world.size}"


@pytest.fixture
def comm():
    """All ranks, here at the same time."""
    here, end = MPI.COMM_WORLD.Ibarrier(), time.monotonic() + 60
    while not here.Test():
        assert time.monotonic() < end, "the other ranks did not come to this test"
        time.sleep(1e-3)
    return MPI.COMM_WORLD
