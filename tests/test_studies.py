"""Studies of training runs: what is run, what is loaded, what is observed."""

import json
import shutil
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from sparsecore import __main__, cluster, datasets, experiment, files, progress
from sparsecore.config import TrainConfig
from sparsecore.datasets import DataCorrupt, DataNotAvailable
from sparsecore.paper import store
from sparsecore.paper.training import conditions, dense, on_cluster, studies, tables, times
from sparsecore.paper.training.conditions import METHODS, STUDIES, Condition, Study
from sparsecore.paper.training.observers import (
    observe_gradient_flow,
    observe_importance,
    observe_pruning,
    observe_topology,
)
from sparsecore.settings import setting
from sparsecore.train import new_model


@pytest.fixture
def ran(monkeypatch):
    """Return the list of (activation, seed) that are trained sequentially from now on."""
    calls = []

    def counted(data, config, **options):
        calls.append((config.activation, options["seed"]))
        return experiment.run(data, config, **options)

    for name in ("set-relu", "set-all-relu"):
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], run=counted))
    return calls


def load():
    return studies.load("F-test")


def test_runs_what_is_missing_and_reads_what_is_there(study, ran):
    first = load()
    assert ran == [("relu", 0), ("all-relu", 0), ("relu", 1), ("all-relu", 1)]
    second = load()
    assert len(ran) == 4
    assert second.runs == first.runs
    assert [run["seed"] for run in second.of("digits", "set-relu")] == [0, 1]


def test_a_deleted_file_is_computed_anew_and_no_other(study, ran):
    before = load().runs
    gone = Condition("F-test", "quick", "digits", "set-all-relu", 1)
    studies.entry(gone).path.unlink()
    ran.clear()
    after = load().runs
    assert ran == [("all-relu", 1)]
    assert [r["weights_sha256"] for r in after] == [r["weights_sha256"] for r in before]


def test_a_result_says_what_it_is_and_is_the_command_line_s(study):
    run = load().of("digits", "set-all-relu")[0]
    config = setting("digits").config.with_values(epochs=2, hidden=(20, 20), activation="all-relu")
    data = datasets.load("digits").limited(300)
    _, alone = experiment.run(data, config, seed=0)
    assert run["weights_sha256"] == alone["weights_sha256"]
    assert run["epochs"][-1]["loss"] == alone["epochs"][-1]["loss"]
    assert run["config"] == alone["config"]
    assert run["data"]["n_train"] == len(data.y_train) == 300
    assert run["data"]["n_test"] == 100
    assert run["limit"] == {"train": 300, "test": 100}
    assert run["provenance"]["data_sha256"] == data.content_hash
    assert "/" not in run["data"]["source"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ("config", "config.zeta was 0.3"),
        ("data", "provenance.data_sha256"),
        ("rows", "limit.train"),
    ],
)
def test_a_result_of_another_configuration_is_computed_anew(
    study, ran, monkeypatch, changed, reason
):
    load()
    ran.clear()
    if changed == "config":
        other = replace(METHODS["set-relu"], changes={"activation": "relu", "zeta": 0.2})
        monkeypatch.setitem(METHODS, "set-relu", other)
    elif changed == "rows":
        fewer = replace(study, quick_rows={"digits": (200, 100)})
        monkeypatch.setitem(STUDIES, "F-test", fewer)
    else:
        monkeypatch.setattr(studies, "data_sha256", lambda name: "another")
    condition = Condition("F-test", "quick", "digits", "set-relu", 0)
    result, state = studies.entry(condition).look()
    assert result is None and state.startswith(f"other configuration: {reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is not damaged
        load()
    every = [("relu", 0), ("all-relu", 0), ("relu", 1), ("all-relu", 1)]
    assert ran == (every[::2] if changed == "config" else every)


def test_an_interruption_loses_only_the_run_in_progress(study, monkeypatch):
    calls = []

    def interrupted(data, config, **options):
        calls.append(config.activation)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return experiment.run(data, config, **options)

    for name in study.methods:
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], run=interrupted))
    with pytest.raises(KeyboardInterrupt):
        load()
    files = {path.suffix for path in store.root().rglob("*") if path.is_file()}
    assert files == {".json", ".lock"}  # nothing partial
    assert len(list(store.root().rglob("*.json"))) == 2
    load()
    assert len(calls) == 3 + 2


@pytest.mark.parametrize("method", ["set-all-relu", "dense"])
def test_a_long_run_goes_on_where_it_was_killed(study, monkeypatch, method):
    runner, seen = METHODS[method].run, []

    def killed(data, config, *, observe, **options):
        assert options.pop("checkpoint_every") > 1  # seconds, more than this run takes

        def see(model, epoch):
            seen.append(epoch)
            if seen.count(3) == 1 and epoch == 3:
                raise KeyboardInterrupt
            return observe(model, epoch)

        config = config.with_values(epochs=4, hidden=(20, 20))
        return runner(data, config, observe=see, checkpoint_every=0, **options)

    monkeypatch.setitem(METHODS, method, replace(METHODS[method], run=killed))
    condition = Condition("F-test", "paper", "digits", method, 0)
    with pytest.raises(KeyboardInterrupt):
        studies._run(condition, lambda epoch: None)
    entry = studies.entry(condition)
    [kept] = entry.path.parent.glob(".*.checkpoint")
    result = entry.obtain(lambda: studies._run(condition, lambda epoch: None))
    assert seen == [0, 1, 2, 3, 3, 4] and not kept.exists()
    config = condition.config.with_values(epochs=4, hidden=(20, 20))
    _, whole = runner(studies.data_of(condition), config, seed=0)
    assert result["weights_sha256"] == whole["weights_sha256"]
    assert [e["epoch"] for e in result["epochs"]] == [0, 1, 2, 3, 4]
    topologies = [e["epoch"] for e in result["epochs"] if "topology" in e]
    assert topologies == ([0, 1, 2] if method == "set-all-relu" else [])


def test_a_bar_leaves_out_the_epochs_before_a_checkpoint(study):
    condition = Condition("F-test", "paper", "digits", "set-relu", 0)
    epochs, work = condition.config.epochs, condition.work
    with progress.bar(3 * epochs * work, "F-test") as shown:
        shown.update(epochs * work)  # a run that has ended; another comes after
        for epoch in range(epochs - 3, epochs + 1):
            studies._count_epoch(condition, shown, epochs * work, epoch)
            assert shown.total - shown.n == pytest.approx((2 * epochs - epoch) * work)
        assert shown.n == pytest.approx((epochs + 4) * work)


def test_a_parallel_run_passes_on_no_epoch_before_its_checkpoint(monkeypatch):
    def resumed(config, data, *, on_progress):
        for epoch in (3.2, 3.9, 5.1):
            on_progress({"epoch": epoch})
        return "model", {"parallel": {}}

    monkeypatch.setattr(on_cluster, "train", resumed)
    seen = []
    config = TrainConfig(epochs=6)
    on_cluster.run("digits", config, observe=lambda model, epoch: seen.append((model, epoch)))
    assert seen == [(None, epoch) for epoch in (4, 5, 6)]


def test_what_another_process_runs_comes_last(study, ran, monkeypatch):
    first = studies.entry(Condition("F-test", "quick", "digits", "set-relu", 0)).path
    held = store.files.lock

    def busy(path, wait=True):
        if not wait and path.name == f".{first.stem}.lock":
            raise BlockingIOError
        return held(path, wait)

    monkeypatch.setattr(store.files, "lock", busy)
    assert len(load().runs) == 4
    assert ran == [("all-relu", 0), ("relu", 1), ("all-relu", 1), ("relu", 0)]


def test_results_of_both_weight_decays_stand_apart(study, ran, monkeypatch):
    both = replace(study, decays=(0.0002, 0.0), methods=("set-relu",))
    monkeypatch.setitem(STUDIES, "F-test", both)
    found = load()
    names = {run["name"]: run["config"]["weight_decay"] for run in found.runs}
    assert names["digits-set-relu-seed0"] == 0.0002
    assert names["digits-set-relu-decay0-seed1"] == 0.0 and len(names) == 4
    assert found.of("digits", "set-relu") == found.at(0.0002).runs
    assert [run["config"]["weight_decay"] for run in found.at(0.0).of("digits", "set-relu")] == [
        0,
        0,
    ]
    assert found.at(0.0).suffix == "-here-decay0" and found.suffix == "-here"


def test_seeds_per_condition_are_the_study_s():
    asked = Counter((c.dataset, c.method, c.decay) for c in STUDIES["T-main"].conditions("paper"))
    assert asked["madelon", "set-relu", 0.0] == asked["madelon", "set-relu", 0.0002] == 10
    assert asked["higgs", "wasap", 0.0] == 5 and asked["fashion-mnist", "dense", 0.0] == 3
    assert asked["cifar10", "wassp", 0.0] == 3 and asked["cifar10", "wassp", 0.0002] == 0
    assert asked["leukemia", "wasap", 0.0002] == 1 and asked["leukemia", "dense", 0.0002] == 0
    quick = {c.decay for c in STUDIES["T-main"].conditions("quick")}
    assert quick == {0.0002}
    owners = {c.decay: c.study for c in STUDIES["F-decay"].conditions("paper")}
    assert owners == {0.0: "T-main", 2e-6: "F-decay", 2e-5: "F-decay", 2e-4: "T-main"}
    seeds = Counter((c.method, c.decay) for c in STUDIES["F-decay"].conditions("paper")
                    if c.dataset == "madelon")  # fmt: skip
    assert [seeds["dense", decay] for decay in (0.0, 2e-6, 2e-4)] == [3, 1, 3]
    assert [seeds["set-all-relu", decay] for decay in (0.0, 2e-6, 2e-4)] == [10, 3, 10]
    pruned = STUDIES["F-importance"].part(datasets=["madelon"], methods=["set-all-relu-pruned"])
    assert len(pruned.conditions("paper")) == 2 * 10 and len(pruned.conditions("quick")) == 1


def test_methods_take_turns_to_be_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(times, "_TURN", 0.0)  # the fewest epochs
    methods, kept, real = ("set-relu", "dense", "set-all-relu-pruned"), tmp_path / "kept", []
    monkeypatch.setitem(STUDIES, "T-main", replace(STUDIES["T-main"], methods=methods))

    def breaks(run):
        if len(real) == 7:  # in the second round that counts
            raise KeyboardInterrupt
        return real.append(training_seconds(run)) or real[-1]

    training_seconds = times.training_seconds
    monkeypatch.setattr(times, "training_seconds", breaks)
    with pytest.raises(KeyboardInterrupt):
        times.measure("digits", 2, kept)
    first = json.loads(kept.read_text())["rounds"]
    assert all(len(turns) == 1 for turns in first.values()), "the cold round does not count"
    spent = dict(zip((*methods[1:], methods[0]), real[3:6], strict=True))  # turns rotate
    epochs = {"set-relu": 2, "dense": 2, "set-all-relu-pruned": 50}
    assert first == {name: [pytest.approx(spent[name] / epochs[name])] for name in methods}
    monkeypatch.setattr(times, "training_seconds", training_seconds)
    with monkeypatch.context() as patch:
        patch.setattr(times, "sources_sha256", lambda: "others")
        foreign = shutil.copy(kept, tmp_path / "foreign")
        assert times.measure("digits", 1, foreign)["rounds"] != first, "of other code"
    monkeypatch.setattr(times, "cores", lambda run: run["config"]["epochs"])
    found = times.measure("digits", 2, kept)
    assert found["cores"] == epochs, "of the run that counts"
    assert found["rounds"].keys() == found["cores"].keys()
    assert all(len(turns) == 2 and min(turns) > 0 for turns in found["rounds"].values())
    assert {name: turns[:1] for name, turns in found["rounds"].items()} == first
    pruned = times._short("madelon", "wasap-pruned")
    assert [e for e in range(1, 51) if pruned.prunes_after(e)] == list(range(20, 50, 2))


def test_a_run_that_diverges_is_recorded_and_not_computed_again(study, ran, monkeypatch):
    wild = replace(METHODS["set-relu"], changes={"activation": "relu", "learning_rate": 1e6})
    monkeypatch.setitem(METHODS, "set-relu", wild)
    with np.errstate(all="ignore"):
        found = load()
    assert found.of("digits", "set-relu") == []
    assert [r["seed"] for r in found.diverged] == [0, 1]
    assert "learning_rate" in found.diverged[0]["diverged"]
    assert len(found.of("digits", "set-all-relu")) == 2
    ran.clear()
    assert load().diverged == found.diverged
    assert ran == []


def test_results_stay_valid_where_their_data_are_not(study, ran, monkeypatch):
    kept = load().runs
    ran.clear()
    monkeypatch.setattr(studies, "data_sha256", lambda name: None)
    assert load().runs == kept and ran == []


def test_damaged_data_are_named_and_the_rest_goes_on(study, monkeypatch, capsys):
    def damaged(name):
        raise DataCorrupt("digits.csv", "1797 rows", "12", "replace the file")

    studies._last_data.clear()
    monkeypatch.setattr(datasets, "load", damaged)
    assert load().runs == []
    assert __main__.main(["study", "run", "F-test"]) == 1
    told = capsys.readouterr()
    assert "digits.csv" in told.err and "replace the file" in told.err
    assert told.err.splitlines()[-1].endswith("the reasons are above")
    assert "not available on this machine" in told.out


def test_a_run_that_nobody_plans_is_not_said_to_lack_data():
    none = studies.Results(STUDIES["T-main"], "paper", [])
    assert none.why_not("cifar10", "wasap") == "no run is planned"
    assert none.why_not("madelon", "wasap") == "not available on this machine"


def test_data_that_cannot_be_had_are_asked_for_once(study, monkeypatch):
    asked = []

    def absent(name):
        asked.append(name)
        raise DataNotAvailable(name, [], "put it there")

    studies._last_data.clear()
    monkeypatch.setattr(datasets, "load", absent)
    found = load()
    assert found.runs == []
    assert found.unavailable.keys() == {"digits"} and "put it there" in found.unavailable["digits"]
    assert asked == ["digits"]


def test_a_study_can_show_the_runs_of_another(study, ran, monkeypatch):
    view = Study("F-view", "", datasets=("digits",), methods=("set-all-relu",), runs_of="F-test")
    monkeypatch.setitem(STUDIES, "F-view", view)
    found = studies.load("F-view")
    assert ran == [("all-relu", 0), ("all-relu", 1)]
    load()
    assert len(ran) == 4
    assert found.epochs("digits") == 2


@pytest.mark.parametrize("profile", store.PROFILES)
def test_runs_serve_two_studies(profile):
    every = STUDIES["F-alpha"].conditions(profile)
    shared = {c.study for c in every if c.method in ("set-relu", "set-all-relu")}
    own = {c.study for c in every if c.method.startswith(("alpha", "epsilon", "zeta"))}
    assert (shared, own) == ({"T-main"}, {"F-alpha"})
    for condition in every:  # all are equally long
        other = replace(condition, study={"T-main": "F-alpha"}.get(condition.study, "T-main"))
        assert (condition.config, condition.limit) == (other.config, other.limit)


def test_a_study_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"expected one of .*F-curves.*, got 'F-none'"):
        conditions.find("F-none")


def test_every_table_and_figure_of_the_design_has_its_study():
    keys = "T-datasets T-hyper T-main T-extreme F-overview F-curves F-gradient-flow F-alpha "
    keys += "F-importance F-topology F-parallel F-scaling F-resources F-speed L-claims "
    keys += "F-average F-decay F-depth T-held-out T-deviations T-times T-estimator T-reliability"
    assert set(keys.split()) == set(STUDIES)


def test_the_paper_profile_is_the_setting_unchanged():
    for study in STUDIES.values():
        for condition in study.conditions("paper"):
            changes = {"weight_decay": condition.decay, **METHODS[condition.method].changes}
            assert condition.config == setting(condition.dataset).config.with_values(**changes)
            assert condition.limit == {"train": None, "test": None}


def test_held_out_rows_are_training_rows_that_are_not_trained_on():
    whole = datasets.load("digits")
    data = studies.data_of(Condition("T-held-out", "paper", "digits", "set-all-relu", 0))
    assert (len(data.y_train), len(data.y_test)) == (1293, 144)
    rows = np.concatenate([data.X_train, data.X_test])
    assert sorted(map(bytes, rows)) == sorted(map(bytes, whole.X_train))
    assert np.bincount(data.y_test).min() >= 14, "stratified"


def test_observed_topology_against_dense_counts():
    config = setting("digits").config.with_values(hidden=(30, 20), epochs=7)
    model = new_model(config, 64, 10, seed=3)
    observe = observe_topology(config, datasets.load("digits"))
    records = [observe(model, epoch) for epoch in range(8)]
    assert [i for i, record in enumerate(records) if record] == [0, 1, 2, 5, 7]
    topology = records[0]["topology"]
    for layer, matrix in enumerate(model.to_scipy()):
        there = np.zeros(matrix.shape, bool)
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        there[rows, matrix.indices] = True
        for side, axis in (("fan_in", 1), ("fan_out", 0)):
            assert topology[side][layer] == np.bincount(there.sum(axis=axis)).tolist()
    dense = model.to_scipy()[0].toarray()
    # four significant digits: half a unit of the fourth
    np.testing.assert_allclose(topology["input_strength"], np.abs(dense).sum(axis=0), rtol=5e-4)


def test_a_method_names_its_runner(study, monkeypatch):
    both = replace(study, methods=("dense", "set-relu"), observers={})
    monkeypatch.setitem(STUDIES, "F-test", both)
    found = load()
    run = found.of("digits", "dense")[0]
    config = setting("digits").config.with_values(
        epochs=2, hidden=(20, 20), **METHODS["dense"].changes
    )
    _, alone = dense.run(datasets.load("digits").limited(300), config, seed=0)
    assert run["weights_sha256"] == alone["weights_sha256"]
    assert run["nnz_start"] == 64 * 20 + 20 * 20 + 20 * 10


class Workers:
    """A running cluster whose runs end as the test says; another page cannot use it meanwhile."""

    own = None

    def __init__(self, monkeypatch, *outcomes):
        self.outcomes = list(outcomes)
        monkeypatch.setattr(cluster, "connect", lambda n: nullcontext(self))
        monkeypatch.setattr(cluster, "train", self.train)

    def train(self, *args, **options):
        with pytest.raises(BlockingIOError), files.lock(store.root() / ".cluster.lock", wait=False):
            pytest.fail("two pages train on one cluster")
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return None, {"parallel": {"failed_workers": outcome}}


def test_a_parallel_run_that_diverges_is_a_result_and_the_next_goes_on(parallel, monkeypatch):
    diverged = cluster.WorkerError("rank 1: FloatingPointError: not finite", "FloatingPointError")
    workers = Workers(monkeypatch, diverged, diverged)
    found = load()
    assert workers.outcomes == [], "both methods were tried"
    assert [run["condition"]["method"] for run in found.diverged] == ["wassp", "wasap"]
    assert "not finite" in found.diverged[0]["diverged"] and not found.no_cluster


def test_a_parallel_run_that_lost_a_worker_is_no_result(parallel, monkeypatch):
    lost = [{"rank": 1, "cause": "silent for 5 s"}]
    Workers(monkeypatch, lost, cluster.ClusterError("engines are gone"))
    found = load()
    assert [run["condition"]["method"] for run in found.runs] == ["set-relu"]
    assert found.no_cluster == "engines are gone"
    assert found.lacks("digits", "wasap") and not found.lacks("digits", "set-relu")


def test_a_study_that_lacks_a_run_ends_with_an_error_and_the_reason(parallel, monkeypatch, capsys):
    Workers(monkeypatch, [{"rank": 1, "cause": "silent for 5 s"}], [])
    monkeypatch.setattr(store, "write", Mock(side_effect=OSError("no space left")))
    with pytest.warns(store.ResultWarning, match="cannot be kept"):
        assert __main__.main(["study", "run", "F-test", "--methods", "set-relu,wassp"]) == 1
    err = capsys.readouterr().err
    assert "parallel runs: workers were lost on the way: rank 1: silent for 5 s; run it" in err
    told = "not recorded: digits-set-relu-seed0, digits-wassp-seed0; the reasons are above"
    assert err.splitlines()[-1].endswith(told)


def test_a_run_that_cannot_start_is_tried_once_more_and_not_for_ever(study, monkeypatch):
    tried = Mock(side_effect=BlockingIOError("too many processes"))
    monkeypatch.setitem(METHODS, "set-relu", replace(METHODS["set-relu"], run=tried))
    with pytest.raises(BlockingIOError, match="too many processes"):
        load()
    assert tried.call_count == 3, "each of two seeds, and the first of them again"


def test_without_a_cluster_parallel_rows_say_so_and_the_others_are_there(parallel, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *args, **options: None)
    found = load()
    assert [run["condition"]["method"] for run in found.runs] == ["set-relu"]
    assert found.no_cluster.startswith("mpiexec: found neither on PATH")
    assert len(parallel) == 1, "asked once, not for every run"
    table = tables.main(found)
    assert "No parallel runs: mpiexec: found neither" in table.sources
    assert list(table.frame["method"]) == ["SET-ReLU"]


def test_what_does_not_fit_is_not_run_and_said():
    reason = conditions.excluded("leukemia", "dense")
    weights = 54675 * 27500 + 27500 * 27500 + 27500 * 18
    assert f"{8 * weights / 2**30:.1f} GiB" in reason
    assert conditions.excluded("leukemia", "set-relu") is None
    assert conditions.excluded("cifar10", "dense") is None
    ran = {(c.dataset, c.method) for c in STUDIES["T-main"].conditions("quick")}
    assert ("leukemia", "dense") not in ran
    assert ("leukemia", "set-relu") in ran


def test_quick_pruning_is_scaled_to_the_epochs():
    condition = Condition("T-main", "quick", "madelon", "set-all-relu-pruned", 0)
    assert condition.config.epochs == 40
    prunings = [e for e in range(1, 41) if condition.config.prunes_after(e)]
    assert prunings == [16, 20, 24, 28, 32, 36]
    paper = replace(condition, profile="paper").config
    assert (paper.prune_from, paper.prune_every, paper.prune_percentile) == (200, 10, 20)
    condition = replace(condition, method="wasap-pruned")
    assert [e for e in range(1, 41) if condition.config.prunes_after(e)] == [16, 24, 32]
    paper = replace(condition, profile="paper").config
    assert (paper.prune_from, paper.prune_every, paper.prune_percentile) == (200, 20, 10)
    condition = replace(condition, dataset="fashion-mnist")
    assert condition.config.epochs == 5
    assert [e for e in range(1, 6) if condition.config.prunes_after(e)] == [2, 3, 4]


def test_recorded_results_are_read_and_never_run(study, ran, monkeypatch):
    assert studies.recorded("F-test").runs == []
    [paper] = [c for c in study.conditions("paper") if c.method == "set-relu"]
    load()
    run = {
        name: value
        for name, value in studies.entry(replace(paper, profile="quick")).look()[0].items()
        if name not in ("study", "name", "profile", "digest", "cache")
    }
    last, n_epochs = run["epochs"][-1], paper.config.epochs
    run |= {
        "limit": paper.limit,
        "config": {"dataset": "digits", **paper.config.to_dict()},
        "epochs": [{**last, "epoch": n + 1} for n in range(n_epochs)],
        "best_test_accuracy": last["test_accuracy"],
    }
    studies.entry(paper).obtain(lambda: run)
    ran.clear()
    monkeypatch.setattr(store, "sources_sha256", lambda: "other code")
    found = studies.recorded("F-test")
    assert [r["profile"] for r in found.runs] == ["paper"]
    assert (found.profile, found.suffix) == ("paper", "")
    assert ran == []

    with monkeypatch.context() as patch:
        patch.setattr(studies, "data_sha256", lambda name: None)  # not on this machine
        assert len(studies.recorded("F-test").runs) == 1
        patch.setattr(studies, "data_sha256", lambda name: "another")
        assert len(studies.recorded("F-test").runs) == 1, "whatever rows are on this machine"
        other = {**datasets.describe("digits"), "sha256": "another"}
        patch.setattr(datasets, "describe", lambda name: other)
        assert studies.recorded("F-test").runs == [], "the pinned data have changed"
    with monkeypatch.context() as patch:
        patch.setenv(store.PROFILE, "paper")  # then they are the build's own, which runs them
        patch.setattr(studies, "load", lambda key: found)
        assert studies.recorded("F-test") == found
    studies.entry(paper).path.write_text("{")
    with pytest.warns(store.ResultWarning, match="it is ignored"):
        assert studies.recorded("F-test").runs == []
    assert studies.entry(paper).path.read_text() == "{"


def _observed(epochs, observer, **changes):
    """Return a trained model and the records that an observer made on the way."""
    config = setting("digits").config.with_values(hidden=(30, 20), epochs=epochs, **changes)
    data, records = datasets.load("digits"), []
    see = observer(config, data)

    def observe(model, epoch):
        records.append((model.copy(), see(model, epoch)))
        return {}

    model, _ = experiment.run(data, config, seed=0, observe=observe)
    return model, data, records


def test_gradient_flow_is_of_the_same_rows_every_epoch():
    _, data, records = _observed(2, observe_gradient_flow)
    rows, scaled = data.limited(1000), data.standardized()
    chosen = [np.flatnonzero((data.X_train == x).all(axis=1))[0] for x in rows.X_train]
    for model, seen in records:
        _, gradient = model.loss_and_gradient(scaled.X_train[chosen], rows.y_train)
        expected = float(gradient.astype(float) @ gradient)
        # Two orders of summing float32 gradients of up to 1000 terms.
        assert seen["gradient_flow"] == pytest.approx(expected, rel=1e-4)


def test_importance_counts_the_neurons_that_have_connections():
    _, _, records = _observed(3, observe_importance, prune_from=1, prune_every=1, epsilon=2)
    assert [i for i, (_, seen) in enumerate(records) if seen] == [0, 1, 2, 3]
    for model, seen in records:
        for layer, one in enumerate(seen["importance"], 1):
            strengths = np.abs(model.to_scipy()[layer - 1].toarray()).sum(axis=1)
            connected = model[layer - 1].fan_in() > 0
            assert sum(one["counts"]) == connected.sum()
            assert one["largest"] == pytest.approx(strengths.max(), rel=1e-6)
            heavy = np.sum(strengths[connected] > one["largest"] / 2)
            assert abs(sum(one["counts"][20:]) - heavy) <= 1  # one on the border


def test_pruning_after_training_against_a_model_pruned_by_hand(monkeypatch):
    size = lambda model, X: model.nbytes  # noqa: E731
    monkeypatch.setattr("sparsecore.paper.training.observers._seconds", size)
    model, data, records = _observed(1, observe_pruning)
    assert records[0][1] == {}
    seen = records[-1][1]["post_pruning"]
    scaled = data.standardized()
    assert seen[0]["nnz"] == model.nnz
    for one in (seen[0], seen[5], seen[-1]):
        pruned = model.copy()
        pruned.velocity = None
        pruned.prune(one["percentile"])
        predicted, small = pruned.predict(scaled.X_test), pruned.compact()
        assert one["test_accuracy"] == (predicted == scaled.y_test).mean()
        assert one["nnz"] == pruned.nnz >= small.nnz
        np.testing.assert_array_equal(small.predict(scaled.X_test), predicted)
        for name, of in (("", pruned), ("compact_", small)):
            assert one[f"{name}nbytes"] == one[f"{name}seconds"] == of.nbytes
    assert records[-1][0].weights_sha256() == model.weights_sha256()


def test_command_line(study, ran, capsys, monkeypatch):
    assert __main__.main(["study", "list"]) == 0
    assert "F-curves" in capsys.readouterr().out
    assert __main__.main(["study", "status"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"results in {store.root()}")
    assert "digits-set-relu-seed0,1: missing" in out
    curves = out.partition("F-curves")[2].partition("F-gradient-flow")[0]
    assert "more listed above" in curves and "missing" not in curves, "shares T-main's runs"
    assert __main__.main(["study", "run", "F-test", "--seeds", "-1"]) == 1
    assert "--seeds: expected integers of at least 0, got (-1,)" in capsys.readouterr().err
    assert __main__.main(["study", "run", "F-test", "--seeds", "1", "--profile", "quick"]) == 0
    assert ran == [("relu", 1), ("all-relu", 1)]
    out = capsys.readouterr().out
    assert "set-all-relu" in out and "test accuracy" in out
    assert __main__.main(["study", "run", "F-none"]) == 1
    assert "F-none" in capsys.readouterr().err
    monkeypatch.setattr(studies.Results, "surrogate", lambda self, name: True)
    assert __main__.main(["study", "run", "F-test", "--seeds", "1", "--profile", "quick"]) == 0
    assert "test accuracy on a surrogate " in capsys.readouterr().out


def test_status_tells_recipes_damage_and_hours(study, ran, monkeypatch, capsys):
    load()
    studies.entry(Condition("F-test", "quick", "digits", "set-relu", 0)).path.write_text("{")
    monkeypatch.setattr(store, "RECIPE", experiment.RECIPE + 1)
    assert __main__.main(["study", "status"]) == 0
    out = capsys.readouterr().out.partition("F-test")[2]
    assert "digits-set-relu-seed0: damaged: " in out and "these take about" in out
    assert f"digits-set-all-relu-seed0,1: other recipe: was {experiment.RECIPE}, is now" in out


def test_command_line_runs_a_part_of_a_study(study, ran, capsys):
    part = ["study", "run", "F-test", "--datasets", "digits", "--methods", "set-all-relu"]
    assert __main__.main(part) == 0
    assert ran == [("all-relu", 0), ("all-relu", 1)]
    assert "set-relu" not in capsys.readouterr().out
    assert __main__.main([*part[:-1], "set-relu,dense"]) == 1
    error = capsys.readouterr().err
    assert "methods: expected one of set-relu, set-all-relu (F-test), got 'dense'" in error
    assert __main__.main(["study", "run", "F-test", "--datasets", "mnist"]) == 1
    assert "datasets: expected one of digits (F-test), got 'mnist'" in capsys.readouterr().err
    assert __main__.main(["study", "run", "F-test", "--decays", "0.5"]) == 1
    assert "decays: expected one of 0.0002 (F-test), got 0.5" in capsys.readouterr().err
    assert __main__.main(["study", "run", "F-speed", "--methods", "dense"]) == 1
    assert "--methods: F-speed is measured as a whole" in capsys.readouterr().err
    assert ran == [("all-relu", 0), ("all-relu", 1)]
