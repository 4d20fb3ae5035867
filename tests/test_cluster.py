"""Clusters of MPI engines: found, started, used, broken."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ipyparallel")
pytest.importorskip("mpi4py")

from ipyparallel.error import RemoteError

from sparsecore import cluster, datasets, wasap
from sparsecore.cluster import ClusterError, engines, training
from sparsecore.config import TrainConfig

pytestmark = [pytest.mark.mpi]
SMALL = TrainConfig(hidden=(40, 30), batch_size=32, epochs=6)
LONG = SMALL.with_values(epochs=4000)


@pytest.fixture(autouse=True)
def profile(tmp_path_factory, monkeypatch):
    """An IPython folder without anyone's cluster in it."""
    folder = tmp_path_factory.mktemp("ipython")
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    # A new user's shell does not have the environment's bin folder on PATH.
    bin_folder = str(Path(sys.executable).parent)
    paths = [p for p in os.environ["PATH"].split(os.pathsep) if p != bin_folder]
    monkeypatch.setenv("PATH", os.pathsep.join(paths))
    return folder


def write_cluster_file(folder, text):
    path = folder / "profile_default" / "security" / "ipcontroller-client.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_cluster_of_its_own_trains_reports_and_goes(profile, capsys):
    states = []
    with cluster.connect(2) as workers:
        assert "2 MPI workers, started here" in repr(workers)
        model, result = cluster.train(workers, SMALL, "digits", on_progress=states.append)
        assert result["config"]["workers"] == 2
        assert model.weights_sha256() == result["weights_sha256"]
        assert wasap.replay(datasets.load("digits"), result)[1]["identical"]

        # A failure that MPI survives leaves the engines usable.
        diverging = SMALL.with_values(learning_rate=1e6)
        with pytest.raises(ClusterError, match=r"rank \d: FloatingPointError: worker \d.*finite"):
            cluster.train(workers, diverging, "digits")
        with pytest.raises(ClusterError, match="rank 0: ValueError: unknown data set 'nothing'"):
            cluster.train(workers, SMALL, "nothing")

        # Nobody looks on: there is a bar.
        cluster.train(workers, LONG.with_values(epochs=100), "digits", limit=200)
        assert "WASAP, 2 workers: 100%" in (told := capsys.readouterr().err)
        assert "100.0/100" in told

        # So does an interrupt, after which no engine trains on.
        def interrupt(state):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cluster.train(
                workers, LONG.with_values(epochs=100_000), "digits", on_progress=interrupt
            )
        assert all(job.get(timeout=10) for job in workers.submit(os.getpid))

        _, result = cluster.train(
            workers, LONG.with_values(epochs=60), "digits", algorithm="wassp", limit=200,
            on_progress=states.append,
        )  # fmt: skip
        assert result["config"]["n_train"] == 200
        assert states and {"phase", "epoch", "updates_per_second", "staleness"} <= states[-1].keys()
        pids = workers.pids
    assert are_gone(pids)


def test_cluster_goes_with_who_started_it_however_that_ends(profile):
    program = (
        "from sparsecore import cluster\nfrom sparsecore.config import TrainConfig\n"
        "config = TrainConfig(hidden=(40, 30), batch_size=32, epochs=100_000)\n"
        "with cluster.connect(2) as workers:\n"
        "    show = lambda state: print(*workers.pids, flush=True)\n"
        "    cluster.train(workers, config, 'digits', on_progress=show)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]  # they train
        process.kill()
    assert len(pids) == 2 and are_gone(pids, 60)  # importing takes its time on a busy machine


def are_gone(pids, seconds=10):
    """Return whether so many seconds are enough for processes to end."""
    end = time.monotonic() + seconds
    while there := any(os.path.exists(f"/proc/{pid}") for pid in pids):
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return not there


@pytest.mark.slow
def test_run_survives_engines_that_are_killed_or_hang(tmp_path):
    path = tmp_path / "run.npz"
    config = SMALL.with_values(epochs=300, learning_rate=0.001)
    broken = []

    def train(workers, rank=None, how=None, epoch=0):
        def interfere(state):
            if rank is not None and state["epoch"] > epoch and not broken:
                broken.append(time.monotonic())
                os.kill(workers.pids[rank], how)

        broken.clear()
        return cluster.train(
            workers, config, "digits", limit=200, checkpoint_path=path, resume=True,
            on_progress=interfere, patience=2,
        )  # fmt: skip

    with cluster.connect(2) as workers:
        killed = rf"rank 1 \(process {workers.pids[1]}\) was killed or crashed.*; resume=True goes"
        with pytest.raises(ClusterError, match=killed):
            train(workers, 1, signal.SIGKILL, 2)
        assert time.monotonic() - broken[0] < 10
    with cluster.connect(2) as workers:
        stopped = rf"rank 0, which .* no sign of life .*process {workers.pids[0]} .*; resume=True"
        with pytest.raises(ClusterError, match=stopped):
            train(workers, 0, signal.SIGSTOP, 10)
        assert time.monotonic() - broken[0] < 10
    with cluster.connect(2) as workers:
        _, result = train(workers)
        assert [epoch["epoch"] for epoch in result["epochs"]] == list(range(1, 301))
        assert len(result["parallel"]["restarts"]) == 2
        assert wasap.replay(datasets.load("digits").limited(200), result)[1]["identical"]


@pytest.mark.slow
def test_cluster_started_in_a_terminal_is_used_and_left_running(profile):
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    terminal = subprocess.Popen(
        [bin_folder / "ipcluster", "start", "--engines=MPI", "-n", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    try:
        while "successfully" not in terminal.stdout.readline():
            assert terminal.poll() is None
        with cluster.connect(2) as workers:
            assert workers.own is None
            _, result = cluster.train(workers, SMALL, "digits")
            assert result["config"]["workers"] == 2
        with cluster.connect(3) as workers:
            _, result = cluster.train(workers, SMALL, "digits")
            assert result["config"]["workers"] == 3
        with pytest.raises(ClusterError, match=r"has 3 engine.*4 workers.*-n 4"):
            with cluster.connect(4):
                pass
        assert terminal.poll() is None
    finally:
        terminal.send_signal(signal.SIGINT)
        terminal.communicate(timeout=30)


class Engines:
    """A client of two engines that answer as the test says."""

    ids = (0, 1)

    def __init__(self, answer):
        self.answer = answer

    def __getitem__(self, engine):
        return SimpleNamespace(apply_async=lambda function: self)

    def ready(self):
        return True

    def get(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (0, 1, 1, "here", engines._SOURCES),
            r"2 engines in MPI jobs of \[1\] ranks.*--engines=MPI",
        ),
        ((0, 2, 1, "here", "older"), "another state of sparsecore.*ipcluster stop"),
        (
            RemoteError("ModuleNotFoundError", "no sparsecore", "", {}),
            "another environme",
        ),
    ],
)
def test_engines_that_cannot_be_used_are_refused(answer, message):
    with pytest.raises(ClusterError, match=message):
        cluster.Cluster(Engines(answer), 2)


@pytest.mark.parametrize(
    ("errors", "stopped", "said"),
    [
        (["EngineError", "EngineError"], [], "rank 1 (process 11) was killed or crashed, and MPI"),
        (["EngineError", "EngineError"], [0], "rank 0 (process 10) is stopped, and MPI ended"),
        (["EngineError", "ParallelError"], [0], "rank 1: ParallelError: the cause"),
        (
            ["EngineError", "ParallelError"],
            [],
            "rank 0 (process 10) was killed or crashed, and MPI",
        ),
        (["ParallelError", "ValueError"], [], "rank 1: ValueError: the cause"),
    ],
)
def test_the_cause_that_is_known_best_is_said(errors, stopped, said):
    jobs = [
        SimpleNamespace(
            ready=lambda: True, successful=lambda: False,
            exception=lambda name=name: RemoteError(name, "the cause", "", {}),
        )
        for name in errors
    ]  # fmt: skip
    workers = SimpleNamespace(pids=[10, 11])
    with pytest.raises(ClusterError) as caught:
        training._raise_errors(workers, jobs, [1, 0], stopped, None)
    assert str(caught.value).startswith(said)


def test_engine_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(engines, "_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(Engines, "ready", lambda self: False)
    with pytest.raises(ClusterError, match=r"engine \[0, 1\] of 2 did not answer within"):
        cluster.Cluster(Engines(None), 2)


def test_stale_cluster_file_is_named_and_passed_over(profile):
    facts = {"interface": "tcp://127.0.0.1", "location": "localhost", "registration": 1}
    path = write_cluster_file(profile, json.dumps(facts))
    with pytest.warns(UserWarning, match=f"{path} is left from a cluster that no longer answers"):
        assert cluster.engines._running("default") is None


def test_damaged_cluster_file_is_named_and_passed_over(profile):
    path = write_cluster_file(profile, "{")
    with pytest.warns(UserWarning, match=f"{path} is left from"):
        assert cluster.engines._running("default") is None


def test_missing_mpiexec_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ClusterError, match="mpiexec: found neither on PATH nor in"):
        with cluster.connect(1):
            pass


def test_less_than_one_worker_is_refused():
    with pytest.raises(ValueError, match="at least 1 worker, got 0"):
        with cluster.connect(0):
            pass
