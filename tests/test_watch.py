"""What is told of processes: by the system, and by the witness of a job."""

import os
import signal
import subprocess
import sys
import time

import pytest

from sparsecore.wasap import witness
from sparsecore.wasap.watch import trouble


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def soon(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_trouble_of_a_process(sleeper):
    assert trouble(os.getpid()) is None
    sleeper.send_signal(signal.SIGSTOP)
    soon(lambda: trouble(sleeper.pid) == "stopped")
    sleeper.send_signal(signal.SIGCONT)
    soon(lambda: trouble(sleeper.pid) is None)
    sleeper.kill()
    soon(lambda: trouble(sleeper.pid) == "gone")  # a zombie
    sleeper.wait()
    assert trouble(sleeper.pid) == "gone"


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no process descriptors")
def test_witnesses_of_the_same_process_numbers(sleeper, capfd, tmp_path):
    checkpoint = tmp_path / "run.npz"
    checkpoint.touch()
    jobs = [witness.start({1: sleeper.pid}, str(checkpoint), 1.0) for _ in range(3)]
    assert len(set(jobs)) == 3
    witness.tell(jobs[0], 1)
    witness.tell(jobs[1], "all")
    sleeper.kill()
    sleeper.wait()  # its number means nothing any more: each has seen it before
    said = ""

    def has_said():
        nonlocal said
        said += capfd.readouterr().err
        return "\n" in said

    soon(has_said)
    time.sleep(0.2)
    assert said + capfd.readouterr().err == (
        f"sparsecore train: rank 1 (process {sleeper.pid}) was killed or crashed; "
        f"--resume goes on from {checkpoint}\n"
    )
