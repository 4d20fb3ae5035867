"""Clusters of MPI engines: found, started, used, broken."""

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import ipyparallel
import psutil
import pytest
from ipyparallel.error import RemoteError

from sparsecore import cluster, datasets, progress, wasap
from sparsecore.cluster import ClusterError, engines, training
from sparsecore.config import TrainConfig
from sparsecore.paper.playground import Session
from sparsecore.paper.training import on_cluster, studies
from sparsecore.wasap import shm

pytestmark = [pytest.mark.mpi]
BIN = Path(sys.executable).parent
SMALL = TrainConfig(hidden=(40, 30), batch_size=32, epochs=6)
LONG = SMALL.with_values(epochs=4000)
ENGINES = max(3, on_cluster.n_workers())


@contextmanager
def new_user(folder):
    """Have an IPython folder without anyone's cluster in it, and a shell as a new user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder))
        # The environment's bin folder is not on PATH.
        paths = os.environ["PATH"].split(os.pathsep)
        patch.setenv("PATH", os.pathsep.join(p for p in paths if p != str(BIN)))
        yield folder


@pytest.fixture(autouse=True)
def profile(tmp_path_factory):
    with new_user(tmp_path_factory.mktemp("ipython")) as folder:
        yield folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A cluster that is started here and goes at the end."""
    with new_user(tmp_path_factory.mktemp("ipython")):
        with cluster.connect(2) as workers:
            yield workers
            with warnings.catch_warnings():  # newer Pythons warn of a fork beside threads
                warnings.simplefilter("ignore")
                child = os.fork()  # as a pool's: it holds all pipes open
            if child == 0:
                time.sleep(120)
                os._exit(0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert are_gone(workers.pids)


def are_gone(pids, seconds=10):
    """Return whether so many seconds are enough for processes to end."""
    return engines.wait_until(lambda: not any(map(psutil.pid_exists, pids)), seconds)


def test_cluster_of_its_own_trains_and_reports(own, capsys):
    assert "2 MPI workers, started here" in repr(own)
    states = []
    model, result = cluster.train(own, SMALL, "digits", on_progress=states.append)
    assert result["config"]["workers"] == 2
    assert model.weights_sha256() == result["weights_sha256"]
    assert wasap.replay(datasets.load("digits"), result)[1]["identical"]
    _, result = cluster.train(
        own, LONG.with_values(epochs=60), "digits", wasap.Plan("wassp"), limit=200,
        on_progress=states.append,
    )  # fmt: skip
    assert result["config"]["n_train"] == 200
    assert states and {"phase", "epoch", "updates", "staleness"} <= states[-1].keys()

    # Nobody looks on: there is a bar.
    _, result = cluster.train(own, LONG.with_values(epochs=100), "digits", limit=200, seed=3)
    limited = datasets.load("digits").limited(200, 3)
    assert wasap.replay(limited, result)[1]["identical"]
    assert "WASAP, 2 workers: 100%" in (told := capsys.readouterr().err)
    assert "100.0/100" in told


NOT_HERE = """
from sparsecore import datasets
kept = datasets.load
def load(name):
    raise OSError("not here")
datasets.load = load
"""
SLOW = """
import pathlib, time
datasets.load = lambda name: pathlib.Path("BEGUN").touch() or time.sleep(60)
"""


def test_failures_that_mpi_survives_leave_the_engines_usable(own, monkeypatch):
    diverging, bars, bar = SMALL.with_values(learning_rate=1e6), [], progress.bar

    def shown(*args, **options):
        bars.append(bar(*args, **options))
        return bars[-1]

    monkeypatch.setattr(progress, "bar", shown)
    with pytest.raises(ClusterError, match=r"rank \d: FloatingPointError: worker \d.*finite"):
        cluster.train(own, diverging, "digits")
    assert bars[0].disable, "it is closed"
    monkeypatch.undo()
    with pytest.raises(ClusterError, match="rank 0: ValueError: unknown data set 'nothing'"):
        cluster.train(own, SMALL, "nothing")

    # So does an interrupt, or what the caller's function raises, after which no engine trains on.
    for error in (KeyboardInterrupt, OSError):
        told = Mock(side_effect=error)
        with pytest.raises(error):
            cluster.train(own, LONG.with_values(epochs=100_000), "digits", on_progress=told)
        assert all(job.get(timeout=10) for job in own.submit(os.getpid))


def test_one_engine_alone_that_cannot_load_is_named_and_a_load_can_be_interrupted(
    own, monkeypatch, tmp_path
):
    second, begun = own.client[own.engines[1]], tmp_path / "begun"

    def look(workers):
        if begun.exists():
            raise KeyboardInterrupt
        return []

    second.execute(NOT_HERE, block=True)
    try:
        with pytest.raises(ClusterError, match="rank 1: OSError: not here") as error:
            cluster.train(own, SMALL, "digits")
        assert error.value.cause == "OSError"

        second.execute(SLOW.replace("BEGUN", str(begun)), block=True)
        monkeypatch.setattr(engines.Cluster, "stopped", look)
        with pytest.raises(KeyboardInterrupt):
            cluster.train(own, SMALL, "digits")
        assert all(job.get(timeout=10) for job in own.submit(os.getpid))
    finally:
        second.execute("datasets.load = kept", block=True)
    monkeypatch.undo()
    cluster.train(own, SMALL, "digits")


def test_cluster_goes_with_who_started_it_however_that_ends():
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


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The folder of a cluster that was started in a terminal, and the process that did."""
    with new_user(tmp_path_factory.mktemp("ipython")) as folder:
        process = subprocess.Popen(
            [BIN / "ipcluster", "start", "--engines=MPI", "-n", str(ENGINES)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
        try:
            # It says that it runs when it has for 30 s; its engines are there much sooner.
            path = folder / "profile_default/security/ipcontroller-client.json"
            assert engines.wait_until(lambda: path.exists() and path.stat().st_size, 60)
            with ipyparallel.Client(str(path)) as client:
                client.wait_for_engines(ENGINES, timeout=60)
            yield str(folder), process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def test_a_study_s_parallel_methods_train_on_one_cluster(running, parallel, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", running[0])
    found = studies.load("F-test")
    assert parallel == [on_cluster.n_workers()]
    data = datasets.load("digits").limited(300)
    for method in ("wassp", "wasap"):
        run = found.of("digits", method)[0]
        assert run["provenance"]["ranks"] == run["parallel"]["workers"] == on_cluster.n_workers()
        assert run["provenance"]["data_sha256"] == data.content_hash
        assert [epoch["epoch"] for epoch in run["epochs"]] == [1, 2]
        assert run["config"]["algorithm"] == method
    assert studies.load("F-test").runs == found.runs
    assert len(parallel) == 1, "what is there needs no cluster"


def test_a_playground_s_run_moves_to_engines_and_back(running, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", running[0])
    with closing(Session()) as session:
        run = session.start(hidden=(40, 30), batch_size=32, epochs=2)
        session.wait()
        session.go_on(run, workers=2, epochs=100_000)
        assert engines.wait_until(lambda: run.done > 4 or run.state.startswith("failed"), 100)
        session.stop()
        done = run.done
        assert (run.state, done > 4) == ("stopped", True)
        session.go_on(run, workers=2, epochs=done + 6)
        session.wait()
        assert (run.state, run.done) == ("finished", done + 6)
        assert {e.get("phase") for e in run.epochs[done:]} == {1, 2}
        session.go_on(run, workers=1, epochs=done + 7)
        session.wait()
    assert (run.state, run.done) == ("finished", done + 7)
    assert run.epochs[-1]["test_accuracy"] > 0.9
    assert run.told[1:] == ["from epoch 3 2 workers (wasap)", f"from epoch {done + 7} 1 worker"]


@pytest.mark.slow
def test_terminal_s_cluster_is_used_a_run_survives_its_end_and_an_engine_that_hangs_is_named(
    own, running, monkeypatch, tmp_path
):
    path = tmp_path / "run.npz"
    config = SMALL.with_values(epochs=300, learning_rate=0.001)
    broken = []

    def saved():
        return path.stat().st_mtime_ns if path.exists() else None

    def train(workers, rank=None, how=None):
        before = saved()

        def interfere(state):
            if rank is not None and saved() != before and not broken:
                broken.append(time.monotonic())
                os.kill(workers.pids[rank], how)

        broken.clear()
        return cluster.train(
            workers, config, "digits", limit=200, checkpoint_path=path, resume=True,
            on_progress=interfere, patience=2,
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setenv("IPYTHONDIR", running[0])
        with cluster.connect(ENGINES) as workers:
            _, result = cluster.train(workers, SMALL, "digits")
            assert result["config"]["workers"] == ENGINES
        more = ENGINES + 1
        with pytest.raises(ClusterError, match=rf"has {ENGINES} engine.*{more} workers.*-n {more}"):
            with cluster.connect(more):
                pass
        assert running[1].poll() is None, "left running"
        with cluster.connect(2) as workers:
            assert workers.own is None
            maps = (Path("/proc", str(pid), "maps").read_text() for pid in workers.pids)
            memory = set(shm._NAME.findall("".join(maps)))
            assert memory and not memory & set(os.listdir("/dev/shm")), "a killed engine's stays"
            # MPI ends the other at once, and ipyparallel may tell of that one first.
            either = "|".join(rf"{r} \(process {pid}\)" for r, pid in enumerate(workers.pids))
            killed = rf"rank ({either}) seems to be .* killed or.*; resume=True continues"
            with pytest.raises(ClusterError, match=killed):
                train(workers, 1, signal.SIGKILL)
            assert time.monotonic() - broken[0] < 10
    # Another cluster goes on with the run.
    _, result = train(own)
    assert result["config"]["workers"] == 2
    assert [epoch["epoch"] for epoch in result["epochs"]] == list(range(1, 301))
    assert len(result["parallel"]["restarts"]) == 1
    assert wasap.replay(datasets.load("digits").limited(200), result)[1]["identical"]

    path = tmp_path / "another.npz"
    # Either the other worker says so, or MPI has ended that by then.
    silent = f"rank 0, which .* no sign of life .*process {own.pids[0]} "
    stopped = rf"({silent}|rank 0 \(process {own.pids[0]}\) is stopped).*; resume=True"
    with pytest.raises(ClusterError, match=stopped):
        train(own, 0, signal.SIGSTOP)
    assert time.monotonic() - broken[0] < 10


class Engines:
    """A client of two engines that answer as the test says."""

    ids = (0, 1)

    def __init__(self, answer):
        self.answer = answer

    def __getitem__(self, engine):
        return SimpleNamespace(apply_async=lambda function: self)

    def ready(self):
        return self.answer is not None

    def get(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((0, 1, 1, "here", engines._SOURCES), r"2 engines in MPI jobs of \[1\] .*--engines=MPI"),
        ((0, 2, 1, "here", "older"), "different code of sparsecore.*ipcluster stop"),
        (RemoteError("ModuleNotFoundError", "no sparsecore", "", {}), "another environme"),
    ],
)
def test_engines_that_cannot_be_used_are_refused(answer, message):
    with pytest.raises(ClusterError, match=message):
        cluster.Cluster(Engines(answer), 2)


@pytest.mark.parametrize(
    ("errors", "stopped", "said"),
    [
        (["EngineError", "EngineError"], [], "rank 1 (process 11) seems to be the first that"),
        (["EngineError", "EngineError"], [0], "rank 0 (process 10) is stopped, and MPI ended"),
        (["EngineError", "ParallelError"], [0], "rank 1: ParallelError: the cause"),
        (["EngineError", "ParallelError"], [], "rank 0 (process 10) seems to be the first that"),
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


class Busy(Engines):
    """Engines of which one, number 1, has ended if `ids` say so, and which others use."""

    def __init__(self, ids, queue):
        self.ids, self.queue = ids, queue

    def queue_status(self, targets):
        return {engine: {"queue": self.queue} for engine in targets}


@pytest.mark.parametrize(
    ("ids", "queue", "told"),
    [((0,), 0, r"rank \[1\] ended after this cluster was"), ((0, 1), 1, "is busy with work")],
)
def test_engines_that_ended_or_are_in_use_are_not_trained_on(monkeypatch, ids, queue, told):
    monkeypatch.setattr(engines, "_REGISTERING", 0.1)
    workers = cluster.Cluster.__new__(cluster.Cluster)
    workers.client, workers.n, workers.engines, workers.own = Busy(ids, queue), 2, [0, 1], None
    with pytest.raises(ClusterError, match=told):
        cluster.train(workers, SMALL, "digits")


def test_a_cluster_that_does_not_start_is_said(monkeypatch):
    def fail(own):
        guards.append(popen.call_args.args[0])
        raise TimeoutError("controller")

    guards, popen = [], Mock(wraps=subprocess.Popen)
    monkeypatch.setattr(engines.subprocess, "Popen", popen)
    monkeypatch.setattr(ipyparallel.Cluster, "start_cluster_sync", fail, raising=False)
    with pytest.raises(ClusterError, match="the cluster did not start: controller"):
        with cluster.connect(1):
            pass
    assert engines._GUARD in guards[0], "it would stop what has started"


def test_engine_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(engines, "_ANSWER_SECONDS", 0.1)
    with pytest.raises(ClusterError, match=r"engine \[0, 1\] of 2 did not answer within"):
        cluster.Cluster(Engines(None), 2)


@pytest.mark.parametrize(
    "text", ['{"interface": "tcp://127.0.0.1", "location": "localhost", "registration": 1}', "{"]
)
def test_stale_or_damaged_cluster_file_is_named_and_passed_over(profile, text):
    path = profile / "profile_default" / "security" / "ipcontroller-client.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.warns(UserWarning, match=f"{path} is left from a cluster that no longer answers"):
        assert engines._running("default") is None


def test_cluster_file_that_is_being_written_is_waited_for(profile, monkeypatch):
    path = profile / "profile_default" / "security" / "ipcontroller-client.json"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(engines.ipp, "Client", lambda file, timeout: Path(file).read_text())
    meanwhile = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: path.write_text("whole"))
    monkeypatch.setattr(engines, "time", meanwhile)
    assert engines._running("default") == "whole"


def test_number_of_workers_is_that_of_a_part_or_refused():
    whole = cluster.Cluster.__new__(cluster.Cluster)
    whole.n, whole.engines, whole.pids, whole.hosts = 3, [5, 6, 7], [1, 2, 3], ["a", "b", "c"]
    part = whole.first(2)
    assert (part.n, part.engines, part.pids) == (2, [5, 6], [1, 2]) and whole.n == 3
    assert part.hosts == ["a", "b"]
    with pytest.raises(ValueError, match="n: expected an integer from 1 to 3, got 4"):
        whole.first(4)
    for n in (0, "2", 1.5):
        with pytest.raises(ValueError, match=f"n: expected an integer of at least 1, got {n!r}"):
            with cluster.connect(n):
                pass


def test_missing_mpiexec_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ClusterError, match="mpiexec: found neither on PATH nor in"):
        with cluster.connect(1):
            pass


def test_only_processes_of_this_machine_are_looked_at(monkeypatch):
    monkeypatch.setattr(engines, "trouble", lambda pid: "stopped")
    workers = cluster.Cluster.__new__(cluster.Cluster)
    workers.pids, workers.hosts = [1, 2], ["elsewhere", socket.gethostname()]
    assert workers.stopped() == [1]


def test_what_a_run_is_told_reaches_the_engines():
    asked = Mock(side_effect=RuntimeError("asked"))
    workers, plan = SimpleNamespace(n=2, submit=asked), wasap.Plan("wassp")
    with pytest.raises(RuntimeError, match="asked"):
        cluster.train(
            workers, SMALL, "digits", plan, seed=3, threads=2, limit=200, checkpoint_path="a.npz",
            resume=True, patience=7, on_progress=print,
        )  # fmt: skip
    assert asked.call_args == call(
        training._train_on_engine, 2, SMALL, "digits", 200, plan, 7, seed=3, threads=2,
        checkpoint_path=os.path.abspath("a.npz"), resume=True,
    )  # fmt: skip
