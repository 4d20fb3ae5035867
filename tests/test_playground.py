"""The playground: sessions that are stopped, changed and compared; its panel, in a browser too."""

import signal
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from sparsecore import datasets, experiment
from sparsecore.cluster.engines import wait_until
from sparsecore.paper import playground
from sparsecore.paper.playground import Session
from sparsecore.settings import setting
from sparsecore.wasap.watch import handled

SMALL = {"hidden": (40, 30), "batch_size": 32}


@pytest.fixture
def session():
    made = Session()
    yield made
    made.close()


def test_stopping_and_going_on_loses_nothing(session):
    run = session.start(**SMALL, epochs=100_000)  # it does not end, however late we look
    assert wait_until(lambda: run.done >= 2, 200)
    with pytest.raises(RuntimeError, match="a run is training: stop it"):
        session.start()
    session.stop()
    assert run.state == "stopped"
    epochs = run.done + 5
    session.go_on(run, epochs=epochs)
    session.wait()
    assert (run.state, run.done) == ("finished", epochs)
    config = setting("digits").config.with_values(**SMALL, epochs=epochs)
    _, result = experiment.run(datasets.load("digits"), config)
    assert run.model.weights_sha256() == result["weights_sha256"]
    assert [e["test_loss"] for e in run.epochs] == [e["test_loss"] for e in result["epochs"]]


def test_a_finished_run_that_goes_on_loses_no_evolution(session):
    pruning = {"prune_from": 2, "prune_every": 2, "prune_percentile": 30}
    run = session.start(**SMALL, **pruning, epochs=4)
    session.wait()
    session.go_on(run, epochs=6)
    session.wait()
    config = setting("digits").config.with_values(**SMALL, **pruning, epochs=6)
    _, result = experiment.run(datasets.load("digits"), config)
    assert run.model.weights_sha256() == result["weights_sha256"]
    changes = [[(e["pruned"], e["replaced"]) for e in es] for es in (run.epochs, result["epochs"])]
    assert changes[0] == changes[1] and min(changes[0][3]) > 0


def test_an_interrupted_wait_leaves_the_run_at_work(session):
    run = session.start(**SMALL, epochs=100_000)
    interrupt = threading.main_thread().ident, signal.SIGINT
    threading.Timer(0.3, signal.pthread_kill, interrupt).start()
    raises = handled(signal.SIGINT, signal.default_int_handler)  # a worker of xdist ignores it
    with pytest.raises(KeyboardInterrupt), raises:
        session.wait(60)
    assert session.running
    with pytest.raises(RuntimeError, match="a run is training: stop it"):
        session.go_on(run)


def test_changes_count_from_where_a_run_stands(session):
    run = session.start(**SMALL, epochs=4, zeta=0.5)
    session.wait()
    start = run.model.nnz
    with pytest.raises(ValueError, match=r"epsilon: expected 10.*run 1 .*got 5.*a new run"):
        session.go_on(run, epsilon=5, epochs=9)
    with pytest.raises(ValueError, match="epochs: expected more than the 4 that run 1 has done"):
        session.go_on(run, epochs=4)
    session.go_on(run, epochs=9, zeta=0, activation="relu", prune_from=5, prune_percentile=50)
    session.wait()
    assert run.state == "finished"
    assert run.model.activation == "relu"
    assert all(e["replaced"] > 0 for e in run.epochs[:3])
    assert not any(e["replaced"] for e in run.epochs[4:])
    assert run.model.nnz < start == run.before.nnz
    assert "from epoch 5 activation relu, zeta 0, prune_from 5" in run.told[-1]


def test_a_failed_run_says_why(session):
    run = session.start(**SMALL, epochs=4, learning_rate=1e6)
    session.wait()
    assert run.state.startswith("failed: the l") and "learning_rate" in run.state


def test_runs_are_compared(session):
    for values in ({}, {"alpha": 0.1}):
        session.start("digits", **SMALL, epochs=2, **values)
        session.wait()
    table = playground.compared(session.runs)
    assert list(table.data["epochs"]) == [2, 2]
    assert "alpha 0.1" in table.data["told"][1] and "alpha" not in table.data["told"][0]
    picture = playground.pictured(session.runs, session.runs[0])
    curves = picture.figure.axes[0].lines
    assert [list(c.get_ydata()) for c in curves] == [
        [e["loss"] for e in run.epochs] for run in session.runs
    ]
    named = ["run 1: hidden [40, 30]", "run 2: hidden [40, 30], alpha 0.1", "run 1, before"]
    assert [t.get_text() for t in picture.figure.legends[0].texts] == named


def test_panel_starts_stops_and_goes_on(request):
    play = playground.Playground("digits", epochs=500)
    request.addfinalizer(play.session.close)
    controls, buttons = play.controls, play.buttons
    assert controls["epsilon"].value == setting("digits").config.epsilon
    controls["dataset"].value = "madelon-generator"
    assert controls["alpha"].value == setting("madelon-generator").config.alpha
    controls["dataset"].value = "digits"
    controls["epochs"].max = controls["epochs"].value = 100_000  # it does not end before "Stop"
    buttons["Start a new run"].click()
    run = play.session.runs[0]
    assert buttons["Start a new run"].disabled and not buttons["Stop"].disabled
    assert wait_until(lambda: run.done > 2 and play.image.value, 200)
    buttons["Stop"].click()
    assert wait_until(
        lambda: f"run 1: stopped, epoch {run.done} of 100000" in play.status.value, 200
    )
    assert not buttons["Continue"].disabled
    controls["epsilon"].value = 3
    buttons["Continue"].click()
    assert "a new run" in play.status.value
    controls["epsilon"].value, controls["epochs"].value = 10, run.done + 2
    buttons["Continue"].click()
    play.session.wait()
    assert wait_until(lambda: "finished" in play.status.value, 200)
    assert run.state == "finished" and "finished" in play.table.value


def test_a_new_panel_ends_the_run_of_the_last_one(request):
    first = playground.Playground().session
    run = first.start(**SMALL, epochs=100_000)
    request.addfinalizer(playground.Playground().session.close)
    assert run.state == "stopped" and not first.running


@pytest.mark.parametrize(
    ("dataset", "values", "told"),
    [
        ("flowers", {}, "dataset: expected one of .*digits.*, got 'flowers'; .*data fetch"),
        ("digits", {"epochs": 5000}, "epochs: expected 1 to 1000, got 5000"),
        ("digits", {"epoch": 3}, "setting: expected .*epochs.*, got 'epoch'"),
        ("digits", {"activation": "relu6"}, "activation: expected one of relu, .*got 'relu6'"),
    ],
)
def test_a_panel_refuses_what_it_does_not_have(dataset, values, told):
    with pytest.raises(ValueError, match=told):
        playground.Playground(dataset, **values)


def test_an_epoch_whose_tester_was_lost_has_no_accuracy(session):
    run = session.start("digits", **SMALL, epochs=2)
    session.wait()
    run.epochs = [run.epochs[0], {**run.epochs[1], "test_accuracy": None}]
    assert playground.compared([run]).data["best"][0] == 100 * run.epochs[0]["test_accuracy"]
    drawn = playground.pictured([run]).figure.axes[1].lines[0].get_ydata()
    assert np.isnan(drawn).tolist() == [False, True]


def test_engines_take_the_epochs_that_are_left(session, monkeypatch, tmp_path):
    asked = []

    def train(workers, config, name, plan, *, seed, **how):
        asked.append((config, plan.algorithm, seed))
        epochs = [{"test_accuracy": 0.5} for _ in range(config.epochs)]
        found = {"parallel": {"failed_workers": []}, "epochs": epochs, "test_accuracy": 0.75}
        return run.model, found

    workers = SimpleNamespace(n=2, first=lambda n: n)
    monkeypatch.setattr(playground.cluster, "connect", lambda n: nullcontext(workers))
    monkeypatch.setattr(playground.cluster, "train", train)
    monkeypatch.setattr(playground, "get_ipython_dir", lambda: str(tmp_path))
    run = session.start(**SMALL, epochs=5, seed=3)
    session.wait()
    changes = {"epochs": 20, "prune_from": 5, "prune_every": 3}
    session.go_on(run, workers=2, algorithm="wassp", **changes)
    session.wait()
    assert (run.state, run.done) == ("finished", 20)
    [(config, algorithm, seed)] = asked
    assert (config.epochs, algorithm, seed) == (15, "wassp", 8)
    assert [e + 5 for e in range(1, 16) if config.prunes_after(e)] == [8, 11, 14, 17]
    assert run.epochs[-1]["test_accuracy"] == 0.75, "of the average"


def test_a_picture_has_its_units_and_tells_inputs_from_neurons(session, monkeypatch):
    run = session.start("digits", **SMALL, epochs=2, prune_from=1, prune_percentile=50)
    session.wait()
    axes = playground.pictured([run]).figure.axes
    units = ("loss", 1), ("test_accuracy", 100), ("nnz", 1e-3)
    for ax, (name, factor) in zip(axes[:3], units, strict=True):
        drawn = ax.lines[0].get_ydata()
        assert drawn == pytest.approx([factor * e[name] for e in run.epochs])
    for ax, neurons in zip(axes[3:5], (64, 40), strict=True):
        assert [line.get_color() for line in ax.lines] == [playground.GREY, run.colour]
        for line, model in zip(ax.lines, (run.before, run.model), strict=True):
            x, y = line.get_data()  # bins of four
            assert np.average(x, weights=y) == pytest.approx(model[0].nnz / neurons, abs=1.5)
    strength = np.abs(run.model[0].to_scipy().toarray()).sum(axis=0)
    np.testing.assert_allclose(axes[5].images[0].get_array(), strength.reshape(8, 8), rtol=1e-5)
    monkeypatch.setattr(datasets, "stands_in", lambda name: True)
    assert playground.compared([run]).data["dataset"].tolist() == ["digits, surrogate"]
