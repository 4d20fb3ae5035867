"""Runs and pictures of the pages on parallel training, on small data without a cluster."""

import pytest

from sparsecore.config import TrainConfig
from sparsecore.paper.parallel import figures as parallel_figures
from sparsecore.paper.parallel import runs as parallel

SMALL = TrainConfig(hidden=(20, 20), batch_size=32, epochs=4)


@pytest.fixture
def trained(one_worker, monkeypatch):
    """The recorded runs, trained here on a busy machine; return the calls for it."""
    small = parallel.Effort(4, 300, (0, 1))
    monkeypatch.setattr(parallel, "DATASET", "digits")
    monkeypatch.setattr(parallel, "EFFORTS", {"quick": small, "paper": small})
    monkeypatch.setattr(parallel, "config_of", lambda profile: SMALL)
    monkeypatch.setattr(parallel, "busy_cpus", lambda: 1.5)
    assert parallel.load("paper").recorded["replay"]["identical"]
    monkeypatch.setattr(parallel, "busy_cpus", lambda: 0.1)
    return one_worker


def test_runs_are_made_in_turns_shown_and_told(trained):
    recorded = parallel.load("paper")
    assert trained == [(name, seed, 0.7) for seed in (0, 1) for name in ("wasap", "wassp")]
    found = recorded.recorded
    accuracy = parallel_figures.accuracy(recorded)
    left = accuracy.figure.axes[0]
    low, high = left.get_ylim()
    for runs in found["runs"].values():
        mean = sum(run["test_accuracy"] for run in runs) / len(runs)
        assert f"{100 * mean:.2f} %" in accuracy.sources
        assert all(low < 100 * run["test_accuracy"] < high for run in runs)
    assert len(left.lines) == 2 + 2 * 2 * 2 + 1  # a line a run, a dot a parallel one, the phases
    tests = [100 * epoch["test_accuracy"] for epoch in found["runs"]["sequential"][0]["epochs"]]
    assert left.lines[0].get_ydata().tolist() == tests
    staleness = parallel_figures.staleness(recorded)
    heights = [bar.get_height() for bar in staleness.figure.axes[0].patches]
    assert heights == [100.0]  # one worker is never stale
    resources = parallel_figures.resources(recorded)
    assert f"{found['runs']['wasap'][0]['nnz_start']:,} connections" in resources.sources
    assert "identical to the last bit" in parallel_figures.replayed(recorded).text


def test_recorded_runs_stand_beside_the_build_s(trained):
    found = parallel.load("quick")
    assert [title for title, _ in found] == ["recorded", "this build"]
    accuracy, resources = parallel_figures.accuracy(found), parallel_figures.resources(found)
    assert [ax.get_title() for ax in accuracy.figure.axes] == ["recorded", "", "this build", ""]
    assert accuracy.sources.count("Final test accuracy") == 2
    for picture in (accuracy, resources):  # the build's machine is quiet
        assert picture.sources.count("Other processes used") == 1
        assert "Other processes used 1.5 CPUs" in picture.sources
    assert len(parallel_figures.staleness(found).figure.axes) == 2
    assert parallel_figures.replayed(found).text.count("identical") == 2
    assert resources.data[["where", "algorithm", "rank"]].to_numpy().tolist() == [
        [title, f"{name}-SGD", 0]
        for title in ("recorded", "this build")
        for name in ("WASAP", "WASSP")
    ]
    assert resources.sources.count("Waiting for the server's lock") == 2

    # Only seeds that all algorithms have are compared, and only a replay of these runs is told.
    parallel.entry("wassp", 1, "paper").path.unlink()
    recorded = parallel.load("quick").recorded
    assert all([run["seed"] for run in runs] == [0] for runs in recorded["runs"].values())
    other = parallel._replay_entry({**recorded["runs"]["wasap"][0], "weights_sha256": "another"})
    other.path.unlink()
    other.obtain(lambda: {**recorded["replay"], "recorded_sha256": "another"})
    assert parallel.load("quick").recorded is None


def test_recorded_runs_are_shown_where_nothing_can_be_run(trained, monkeypatch):
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
