"""Runs and pictures of the pages on parallel training, on small data without a cluster."""

from contextlib import contextmanager

import pytest

from sparsecore import datasets, wasap
from sparsecore.config import TrainConfig
from sparsecore.paper.parallel import figures as parallel_figures
from sparsecore.paper.parallel import runs as parallel
from sparsecore.paper.store import ResultWarning

SMALL = TrainConfig(hidden=(20, 20), batch_size=32, epochs=4)


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """What would be trained on a cluster, trained here by one worker, and listed."""
    mpi = pytest.importorskip("mpi4py.MPI")
    calls = []

    @contextmanager
    def connect(n):
        yield n

    def train(workers, config, dataset, *, algorithm, seed, limit):
        calls.append((algorithm, seed))
        data = datasets.load(dataset).limited(limit, random_state=seed)
        plan = wasap.Plan(algorithm)
        return wasap.run(data, config, plan, seed=seed, comm=mpi.COMM_SELF)

    monkeypatch.setenv("SPARSECORE_RESULTS", str(tmp_path))
    monkeypatch.setattr(parallel, "DATASET", "digits")
    small = parallel.Effort(4, 300, (0, 1))
    monkeypatch.setattr(parallel, "EFFORTS", {"quick": small, "paper": small})
    monkeypatch.setattr(parallel, "config_of", lambda profile: SMALL)
    monkeypatch.setattr(parallel.cluster, "connect", connect)
    monkeypatch.setattr(parallel.cluster, "train", train)
    monkeypatch.setattr(parallel, "busy_cpus", lambda: 0.1)
    return calls


def test_runs_are_made_once_and_then_read(trained):
    first = parallel.load("quick").here
    assert trained == [("wasap", 0), ("wassp", 0), ("wasap", 1), ("wassp", 1)]
    assert first.replay["identical"]
    again = parallel.load("quick").here
    assert len(trained) == 4
    assert again.runs == first.runs and again.replay == first.replay

    parallel.entry("wassp", 1, "quick").path.write_text("{")
    with pytest.warns(ResultWarning, match=r"wassp-seed1.json .* damaged"):
        repaired = parallel.load("quick").here
    assert trained[4:] == [("wassp", 1)]
    assert repaired.runs["wassp"][1]["weights_sha256"] == first.runs["wassp"][1]["weights_sha256"]


def test_pictures_say_what_the_runs_hold(trained):
    versions = parallel.load("quick")
    found = versions.here
    accuracy = parallel_figures.accuracy(versions)
    for runs in found.runs.values():
        mean = sum(run["test_accuracy"] for run in runs) / len(runs)
        assert f"{100 * mean:.2f} %" in accuracy.sources
    left = accuracy.figure.axes[0]
    assert len(left.lines) == 2 + 2 * 2 * 2 + 1  # a line a run, a dot a parallel one, the phases
    tests = [100 * epoch["test_accuracy"] for epoch in found.runs["sequential"][0]["epochs"]]
    assert left.lines[0].get_ydata().tolist() == tests
    low, high = left.get_ylim()
    assert all(
        low < 100 * run["test_accuracy"] < high for runs in found.runs.values() for run in runs
    )

    staleness = parallel_figures.staleness(versions)
    heights = [bar.get_height() for bar in staleness.figure.axes[0].patches]
    assert heights == [100.0]  # one worker is never stale
    resources = parallel_figures.resources(versions)
    assert f"{found.first('wasap')['nnz_start']:,} connections" in resources.sources
    assert "identical to the last bit" in parallel_figures.replayed(versions).text


def test_a_busy_machine_is_told(trained, monkeypatch):
    quiet = parallel.load("paper")
    monkeypatch.setattr(parallel, "busy_cpus", lambda: 1.5)
    found = parallel.load("quick")
    pictures = (parallel_figures.accuracy, parallel_figures.resources)
    for draw in pictures:
        assert "Other processes" not in draw(quiet).sources
        assert "Other processes used 1.5 CPUs" in draw(found).sources


def test_recorded_runs_stand_beside_the_build_s(trained, monkeypatch):
    parallel.load("paper")
    found = parallel.load("quick")
    assert [title for title, _ in found] == ["recorded", "this build"]
    accuracy = parallel_figures.accuracy(found)
    assert [ax.get_title() for ax in accuracy.figure.axes] == ["recorded", "", "this build", ""]
    assert accuracy.sources.count("Final test accuracy") == 2
    assert len(parallel_figures.staleness(found).figure.axes) == 2
    assert parallel_figures.replayed(found).text.count("identical") == 2
    resources = parallel_figures.resources(found)
    assert resources.data[["where", "algorithm", "rank"]].to_numpy().tolist() == [
        [title, f"{name}-SGD", 0]
        for title in ("recorded", "this build")
        for name in ("WASAP", "WASSP")
    ]
    assert resources.sources.count("Waiting for the server's lock") == 2

    # Only seeds that all algorithms have are compared, and only a replay of these runs is told.
    parallel.entry("wassp", 1, "paper").path.unlink()
    recorded = parallel.load("quick").recorded
    assert all([run["seed"] for run in runs] == [0] for runs in recorded.runs.values())
    other = parallel._replay_entry({**recorded.first("wasap"), "weights_sha256": "another"})
    other.path.unlink()
    other.obtain(lambda: {**recorded.replay, "recorded_sha256": "another"})
    assert parallel.load("quick").recorded is None


def test_recorded_runs_are_shown_where_nothing_can_be_run(trained, monkeypatch):
    parallel.load("paper")

    def connect(n):
        raise parallel.cluster.ClusterError("no MPI here")

    monkeypatch.setattr(parallel.cluster, "connect", connect)
    found = parallel.load("quick")
    accuracy = parallel_figures.accuracy(found)
    assert [ax.get_title() for ax in accuracy.figure.axes] == ["recorded", ""]
    assert "no MPI here" in accuracy.sources
    assert "profile paper" in parallel_figures.resources(found).sources
    parallel._replay_entry({"weights_sha256": "", "profile": "paper"}).path.unlink()
    nothing = parallel.load("quick")
    assert not nothing
    assert "no MPI here" in parallel_figures.accuracy(nothing).caption
    assert "no MPI here" in parallel_figures.replayed(nothing).text


def test_schematic_shows_every_worker():
    picture = parallel_figures.overview(4)
    texts = {text.get_text() for text in picture.figure.axes[0].texts}
    assert {f"worker {rank}" for rank in range(4)} <= texts
    assert picture.svg() == parallel_figures.overview(4).svg()
