"""What is told of processes: by the system, and by the witness of a job."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from sparsecore.__main__ import main
from sparsecore.cluster.engines import wait_until
from sparsecore.wasap import witness
from sparsecore.wasap.watch import PATIENCE, trouble


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def witness_listens(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words:
        return words.connect_ex(address) == 0


def test_the_default_patience_is_short_and_told(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert PATIENCE <= 5, "the README: within ten seconds"
    assert f"counts as lost ({PATIENCE:g})" in " ".join(capsys.readouterr().out.split())


def test_trouble_of_a_process(sleeper):
    assert trouble(os.getpid()) is None
    sleeper.send_signal(signal.SIGSTOP)
    assert wait_until(lambda: trouble(sleeper.pid) == "stopped", 10)
    sleeper.send_signal(signal.SIGCONT)
    assert wait_until(lambda: trouble(sleeper.pid) is None, 10)
    sleeper.kill()
    assert wait_until(lambda: trouble(sleeper.pid) == "gone", 10)  # a zombie
    sleeper.wait()
    assert trouble(sleeper.pid) == "gone"


# Its first thread ends, another goes on: that is what a process looks like while it ends.
ENDING = (
    "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    "ctypes.PyDLL(None).pthread_exit(None)"
)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no process descriptors")
def test_a_rank_that_is_about_to_end_is_named_beside_the_one_that_has(sleeper, capfd):
    with subprocess.Popen([sys.executable, "-c", ENDING]) as first:
        try:
            assert wait_until(lambda: witness._facts(str(first.pid))[0] == "Z", 10)
            assert not witness._ends(str(sleeper.pid))
            witness.start({0: first.pid, 1: sleeper.pid}, None, 1.0)
            sleeper.kill()  # as mpiexec does, which has seen that the first one ends
            said = []
            wait_until(lambda: said.append(capfd.readouterr().err) or "\n" in "".join(said), 10)
            told = f"rank 0 (process {first.pid}) or rank 1 (process {sleeper.pid}) was killed"
            assert told in "".join(said)
        finally:
            first.kill()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no process descriptors")
@pytest.mark.parametrize(("told", "named"), [((1, "all"), True), ((0, 1, "all"), False)])
def test_a_rank_that_is_about_to_end_is_named_by_a_job_that_goes_on(told, named, sleeper, capfd):
    with subprocess.Popen([sys.executable, "-c", ENDING]) as lost:
        try:
            assert wait_until(lambda: witness._facts(str(lost.pid))[0] == "Z", 10)
            job = witness.start({0: lost.pid, 1: sleeper.pid}, None, 1.0)
            for word in told:
                witness.tell(job, word)
            assert wait_until(lambda: not witness_listens(job), 10)
            said = f"sparsecore train: rank 0 (process {lost.pid}) was killed or crashed\n"
            assert capfd.readouterr().err == said * named
        finally:
            lost.kill()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no process descriptors")
def test_witnesses_of_the_same_process_numbers(sleeper, capfd, tmp_path):
    checkpoint = tmp_path / "run.npz"
    checkpoint.touch()
    jobs = [witness.start({1: sleeper.pid}, str(checkpoint), 1.0) for _ in range(3)]
    assert len(set(jobs)) == 3
    witness.tell(jobs[0], 1)
    witness.tell(jobs[1], "all")
    assert wait_until(lambda: not witness_listens(jobs[1]), 10)
    sleeper.kill()
    sleeper.wait()  # its number means nothing any more: each has seen it before
    said = ""

    def has_said():
        nonlocal said
        said += capfd.readouterr().err
        return "\n" in said

    assert wait_until(has_said, 10)
    witness.tell(jobs[0], "all")
    assert wait_until(lambda: not witness_listens(jobs[0]), 10)
    assert said + capfd.readouterr().err == (
        f"sparsecore train: rank 1 (process {sleeper.pid}) was killed or crashed; "
        f"--resume continues from {checkpoint}\n"
    )
