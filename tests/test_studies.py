"""Studies: run or load, and when a result file is not taken for what it says."""

import importlib
import json
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest

from sparsecore import __main__, cluster, datasets, experiment
from sparsecore.datasets import DataCorrupt, DataNotAvailable
from sparsecore.files import lock
from sparsecore.paper import repeat, results
from sparsecore.paper.measurements import Measurements
from sparsecore.paper.results import ResultWarning
from sparsecore.paper.training import conditions, dense, on_cluster, studies, tables
from sparsecore.paper.training.conditions import METHODS, STUDIES, Condition, Study
from sparsecore.paper.training.observers import (
    ObserveGradientFlow,
    ObserveImportance,
    ObservePruning,
    ObserveTopology,
)
from sparsecore.settings import setting
from sparsecore.train import new_model


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Return a study of four short runs on embedded data, with a results folder of its own."""
    small = Study(
        "F-test",
        "two methods on digits",
        datasets=("digits",),
        methods=("set-relu", "set-all-relu"),
        seeds={"quick": (0, 1), "paper": (0,)},
        quick={"digits": {"epochs": 2, "hidden": (20, 20)}},
        quick_rows={"digits": (300, 100)},
        observers={("digits", "set-all-relu"): (ObserveTopology,)},
    )
    monkeypatch.setitem(STUDIES, "F-test", small)
    monkeypatch.setenv(results.ENVIRONMENT, str(tmp_path))
    monkeypatch.delenv(conditions.ENVIRONMENT, raising=False)
    return small


@pytest.fixture
def ran(monkeypatch):
    """Return the list of (activation, seed) that are trained from now on."""
    calls = []
    train = experiment.run

    def counted(data, config, **options):
        calls.append((config.activation, options["seed"]))
        return train(data, config, **options)

    monkeypatch.setattr(experiment, "run", counted)
    return calls


def load():
    return studies.load("F-test", progress=False)


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
    gone.path.unlink()
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


def _cut(text):
    return text[: len(text) // 2]


def _edited(text):
    found = json.loads(text)
    found["test_accuracy"] = 0.999
    return json.dumps(found)


def _foreign(text):
    return json.dumps({"accuracy": 1.0})


def _typed(text):
    found = json.loads(text)
    found["nnz_end"] = "many"
    return json.dumps(found)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(_cut, "not JSON"), (_edited, "digest"), (_foreign, "format_version"), (_typed, "nnz_end")],
)
def test_a_damaged_file_is_named_and_computed_anew(study, ran, spoil, reason):
    path = Condition("F-test", "quick", "digits", "set-relu", 0).path
    good = load().runs[0]
    path.write_text(spoil(path.read_text()))
    ran.clear()
    with pytest.warns(results.ResultWarning, match=f"{path.name}.*{reason}"):
        again = load()
    assert ran == [("relu", 0)]
    assert again.runs[0]["test_accuracy"] == good["test_accuracy"]


def test_the_result_of_another_run_is_not_taken(study, ran):
    load()
    one = Condition("F-test", "quick", "digits", "set-relu", 0).path
    other = Condition("F-test", "quick", "digits", "set-relu", 1).path
    one.write_bytes(other.read_bytes())
    ran.clear()
    with pytest.warns(results.ResultWarning, match="another run"):
        load()
    assert ran == [("relu", 0)]


@pytest.mark.parametrize("changed", ["config", "code", "data", "rows"])
def test_a_stale_result_is_computed_anew(study, ran, monkeypatch, changed):
    load()
    ran.clear()
    if changed == "config":
        monkeypatch.setitem(
            METHODS, "set-relu", conditions.Method("SET", {"activation": "relu", "zeta": 0.2})
        )
    elif changed == "code":
        monkeypatch.setattr(results, "code_sha256", lambda *modules: "another")
    elif changed == "rows":
        fewer = replace(study, quick_rows={"digits": (200, 100)})
        monkeypatch.setitem(STUDIES, "F-test", fewer)
    else:
        monkeypatch.setattr(studies, "data_sha256", lambda name: "another")
    condition = Condition("F-test", "quick", "digits", "set-relu", 0)
    result, state = studies.look(condition)
    assert result is None
    assert state.startswith(
        "stale: "
        + {
            "config": "zeta",
            "code": "the code",
            "data": "the data",
            "rows": "rows (train) were 300",
        }[changed]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # stale is not damaged
        load()
    assert ran == {
        "config": [("relu", 0), ("relu", 1)],
        "code": [("relu", 0), ("all-relu", 0), ("relu", 1), ("all-relu", 1)],
    }.get(changed, [("relu", 0), ("all-relu", 0), ("relu", 1), ("all-relu", 1)])


def test_an_interruption_loses_only_the_run_in_progress(study, monkeypatch):
    train, calls = experiment.run, []

    def interrupted(data, config, **options):
        calls.append(config.activation)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(data, config, **options)

    monkeypatch.setattr(experiment, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load()
    files = {path.suffix for path in results.root().rglob("*") if path.is_file()}
    assert files == {".json", ".lock"}  # nothing partial
    assert len(list(results.root().rglob("*.json"))) == 2
    load()
    assert len(calls) == 3 + 2


def test_a_run_that_diverges_is_recorded_and_not_computed_again(study, ran, monkeypatch):
    wild = conditions.Method("SET", {"activation": "relu", "learning_rate": 1e6})
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


def test_what_another_process_has_computed_meanwhile_is_read(study, ran, monkeypatch):
    computed = load().runs
    ran.clear()
    looks, look = [], studies.look

    def late(condition):  # at the first look at all conditions, none was there
        looks.append(condition)
        return (None, "missing") if len(looks) <= 4 else look(condition)

    monkeypatch.setattr(studies, "look", late)
    assert load().runs == computed and ran == []


def test_two_processes_do_not_compute_the_same_run(study, tmp_path):
    condition = Condition("F-test", "quick", "digits", "set-relu", 0)
    held = condition.path.with_name(f".{condition.name}.lock")
    with ThreadPoolExecutor(1) as pool:
        with lock(held) as locked:
            if not locked:
                pytest.skip("this system has no locks")
            waiting = pool.submit(studies.load, "F-test", progress=False)
            time.sleep(0.3)
            assert not list(results.root().rglob("*.json"))
        assert len(waiting.result().runs) == 4


def test_results_that_cannot_be_written_are_shown_all_the_same(study, monkeypatch):
    def full(path, result):
        raise OSError("no space left")

    kept = load().runs
    for path in results.root().rglob("*.json"):
        path.unlink()
    monkeypatch.setattr(results, "write", full)
    with pytest.warns(
        ResultWarning, match=r"digits-set-relu-seed0.*cannot be kept \(no space left"
    ):
        found = load()
    assert [r["weights_sha256"] for r in found.runs] == [r["weights_sha256"] for r in kept]


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
    found = studies.load("F-view", progress=False)
    assert ran == [("all-relu", 0), ("all-relu", 1)]
    load()
    assert len(ran) == 4
    assert found.epochs("digits") == 2


@pytest.mark.parametrize("profile", conditions.PROFILES)
def test_runs_serve_two_studies(profile):
    every = STUDIES["F-alpha"].conditions(profile)
    shared = {c.study for c in every if c.method in ("set-relu", "set-all-relu")}
    own = {c.study for c in every if c.method.startswith(("alpha", "epsilon", "zeta"))}
    assert (shared, own) == ({"T-main"}, {"F-alpha"})
    for condition in every:  # all are equally long
        other = replace(condition, study={"T-main": "F-alpha"}.get(condition.study, "T-main"))
        assert (condition.config, condition.limit) == (other.config, other.limit)


def test_profiles(study, monkeypatch):
    assert conditions.current_profile() == "quick"
    monkeypatch.setenv(conditions.ENVIRONMENT, "paper")
    assert conditions.current_profile() == "paper"
    assert conditions.current_profile("quick") == "quick"
    monkeypatch.setenv(conditions.ENVIRONMENT, "huge")
    with pytest.raises(
        ValueError, match=r"\$SPARSECORE_PROFILE: expected one of quick, paper, got 'huge'"
    ):
        conditions.current_profile()
    with pytest.raises(ValueError, match=r"expected one of .*F-curves.*, got 'F-none'"):
        conditions.find("F-none")


def test_every_table_and_figure_of_the_design_has_its_study():
    keys = "T-datasets T-hyper T-main T-extreme F-overview F-curves F-gradient-flow F-alpha "
    keys += "F-importance F-topology F-parallel F-scaling F-resources F-speed L-claims"
    assert set(keys.split()) == set(STUDIES)
    measured = [study for study in STUDIES.values() if study.measured_by]
    assert {study.key for study in measured} == {"F-speed", "F-parallel", "F-scaling", "T-extreme"}
    for study in measured:
        module = importlib.import_module(study.measured_by)
        assert module.FILES.study == study.key
        assert callable(module.load)


def test_state_of_a_measurement(tmp_path, monkeypatch):
    monkeypatch.setenv(results.ENVIRONMENT, str(tmp_path))
    files = Measurements("F-test", lambda: "code", lambda profile: ["a", "b", "c"])
    files.write("b", "quick", {"ms": 1.0})
    replace(files, code_sha256=lambda: "older").write("c", "quick", {})
    states = files.look("quick")
    assert (states["a"], states["b"], states["c"][:5]) == ("missing", "present", "stale")
    assert files.read("c", "quick") is not None
    files.path("b", "quick").write_text('{"study": "F-test"')
    with pytest.warns(results.ResultWarning, match="b.json of F-test, quick: damaged"):
        assert files.look("quick")["b"].startswith("stale or damaged")


def test_the_paper_profile_is_the_setting_unchanged():
    for study in STUDIES.values():
        for condition in study.conditions("paper"):
            changes = METHODS[condition.method].changes
            assert condition.config == setting(condition.dataset).config.with_values(**changes)
            assert condition.limit == {"train": None, "test": None}


def test_observed_topology_against_dense_counts():
    config = setting("digits").config.with_values(hidden=(30, 20), epochs=7)
    model = new_model(config, 64, 10, seed=3)
    observe = ObserveTopology(config, datasets.load("digits"))
    records = [observe(model) for _ in range(8)]
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
    assert run["code_sha256"] != found.of("digits", "set-relu")[0]["code_sha256"]


@pytest.fixture
def parallel(study, monkeypatch, tmp_path):
    """Return the study with parallel methods, and the list of clusters that are asked for."""
    pytest.importorskip("ipyparallel")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    both = replace(study, methods=("set-relu", "wassp", "wasap"), seeds={"quick": (0,)})
    monkeypatch.setitem(STUDIES, "F-test", replace(both, observers={}))
    asked, connect = [], cluster.connect

    def counted(n):
        asked.append(n)
        return connect(n)

    monkeypatch.setattr(cluster, "connect", counted)
    return asked


@pytest.mark.mpi
def test_parallel_methods_train_on_one_cluster(parallel):
    pytest.importorskip("mpi4py")
    found = load()
    assert parallel == [on_cluster.n_workers()]
    data = datasets.load("digits").limited(300)
    for method in ("wassp", "wasap"):
        run = found.of("digits", method)[0]
        assert run["provenance"]["ranks"] == run["parallel"]["workers"] == on_cluster.n_workers()
        assert run["provenance"]["data_sha256"] == data.content_hash
        assert [epoch["epoch"] for epoch in run["epochs"]] == [1, 2]
        assert run["config"]["algorithm"] == method
    assert load().runs == found.runs
    assert len(parallel) == 1, "what is there needs no cluster"


class Workers:
    """A cluster whose runs end as the test says."""

    def __init__(self, monkeypatch, *outcomes):
        self.outcomes = list(outcomes)
        monkeypatch.setattr(cluster, "connect", lambda n: nullcontext(self))
        monkeypatch.setattr(cluster, "train", self.train)

    def train(self, *args, **options):
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


def test_without_a_cluster_parallel_rows_say_so_and_the_others_are_there(parallel, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *args, **options: None)
    found = load()
    assert [run["condition"]["method"] for run in found.runs] == ["set-relu"]
    assert found.no_cluster.startswith("mpiexec: found neither on PATH")
    assert len(parallel) == 1, "asked once, not for every run"
    table = tables.main(found)
    assert "WASAP: not run: mpiexec: found neither" in table.caption
    assert table.frame.set_index("method").loc["WASAP", "accuracy (%)"] == "—"


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
    assert condition.config.epochs == 60
    prunings = [e for e in range(1, 61) if condition.config.prunes_after(e)]
    assert prunings == [24, 30, 36, 42, 48, 54]
    paper = replace(condition, profile="paper").config
    assert (paper.prune_from, paper.prune_every, paper.prune_percentile) == (200, 10, 20)
    condition = replace(condition, method="wasap-pruned")
    assert [e for e in range(1, 61) if condition.config.prunes_after(e)] == [24, 36, 48]
    paper = replace(condition, profile="paper").config
    assert (paper.prune_from, paper.prune_every, paper.prune_percentile) == (200, 20, 10)
    condition = replace(condition, dataset="fashion-mnist")
    assert condition.config.epochs == 6
    assert [e for e in range(1, 7) if condition.config.prunes_after(e)] == [2, 3, 4, 5]


def test_recorded_results_are_read_and_never_run(study, ran, monkeypatch):
    assert studies.recorded("F-test").runs == []
    paper = [c for c in study.conditions("paper") if c.method == "set-relu"]
    for condition in paper:
        run = dict(load().of("digits", "set-relu")[0])
        run |= {
            "profile": "paper",
            "limit": condition.limit,
            "config": {"dataset": "digits", **condition.config.to_dict()},
        }
        run.pop("digest")
        results.write(condition.path, run)
    ran.clear()
    found = studies.recorded("F-test")
    assert [r["profile"] for r in found.runs] == ["paper"]
    assert (found.recorded, found.older, found.suffix) == (True, False, "-recorded")
    assert ran == []

    with monkeypatch.context() as patch:
        patch.setattr(results, "code_sha256", lambda *modules: "another")
        older = studies.recorded("F-test")
        assert len(older.runs) == 1
        assert "some made by earlier code and not repeated" in older.provenance
    with monkeypatch.context() as patch:
        patch.setattr(studies, "data_sha256", lambda name: None)  # not on this machine
        assert len(studies.recorded("F-test").runs) == 1
        patch.setattr(studies, "data_sha256", lambda name: "another")
        assert studies.recorded("F-test").runs == []
    with monkeypatch.context() as patch:
        patch.setitem(
            METHODS, "set-relu", conditions.Method("SET", {"activation": "relu", "zeta": 0.2})
        )
        assert studies.recorded("F-test").runs == []
    with monkeypatch.context() as patch:
        patch.setenv(conditions.ENVIRONMENT, "paper")  # then they are the build's own
        assert studies.recorded("F-test").runs == []
    paper[0].path.write_text("{")
    with pytest.warns(results.ResultWarning, match="left out"):
        assert studies.recorded("F-test").runs == []
    assert paper[0].path.read_text() == "{"


def _observed(epochs, observer, **changes):
    """Return a trained model and the records that an observer made on the way."""
    config = setting("digits").config.with_values(hidden=(30, 20), epochs=epochs, **changes)
    data, records = datasets.load("digits"), []
    see = observer(config, data)

    def observe(model):
        records.append((model.copy(), see(model)))
        return {}

    model, _ = experiment.run(data, config, seed=0, observe=observe)
    return model, data, records


def test_gradient_flow_is_of_the_same_rows_every_epoch():
    _, data, records = _observed(2, ObserveGradientFlow)
    rows, scaled = data.limited(1000), data.standardized()
    chosen = [np.flatnonzero((data.X_train == x).all(axis=1))[0] for x in rows.X_train]
    for model, seen in records:
        _, gradient = model.loss_and_gradient(scaled.X_train[chosen], rows.y_train)
        expected = float(gradient.astype(float) @ gradient)
        # Two orders of summing float32 gradients of up to 1000 terms.
        assert seen["gradient_flow"] == pytest.approx(expected, rel=1e-4)


def test_importance_counts_the_neurons_that_have_connections():
    _, _, records = _observed(3, ObserveImportance, prune_from=1, prune_every=1, epsilon=2)
    assert [i for i, (_, seen) in enumerate(records) if seen] == [0, 1, 2, 3]
    for model, seen in records:
        for layer, one in enumerate(seen["importance"], 1):
            strengths = np.abs(model.to_scipy()[layer - 1].toarray()).sum(axis=1)
            connected = model[layer - 1].fan_in() > 0
            assert sum(one["counts"]) == connected.sum()
            assert one["largest"] == pytest.approx(strengths.max(), rel=1e-6)
            heavy = np.sum(strengths[connected] > one["largest"] / 2)
            assert abs(sum(one["counts"][20:]) - heavy) <= 1  # one on the border


def test_pruning_after_training_against_a_model_pruned_by_hand():
    model, data, records = _observed(1, ObservePruning)
    assert records[0][1] == {}
    seen = records[-1][1]["post_pruning"]
    scaled = data.standardized()
    assert seen[0]["nnz"] == model.nnz
    for one in (seen[0], seen[5], seen[-1]):
        pruned = model.copy()
        pruned.prune(one["percentile"])
        hits = pruned.predict(scaled.X_test) == scaled.y_test
        assert one["test_accuracy"] == hits.mean()
        assert one["nnz"] == pruned.nnz
        assert one["agreement"] == 1
        assert one["compact_nnz"] <= one["nnz"]
    assert records[-1][0].weights_sha256() == model.weights_sha256()


def test_a_base_class_s_code_counts_for_an_observer(monkeypatch):
    before = ObserveTopology.code_sha256()
    original = results.essence

    def changed(source):
        return original(source) + "# changed" * source.startswith("class Observer:")

    monkeypatch.setattr(results, "essence", changed)
    assert ObserveTopology.code_sha256() != before
    monkeypatch.undo()
    kinds = (ObserveTopology, ObserveImportance, ObservePruning)
    assert len({kind.code_sha256() for kind in kinds}) == 3


def test_only_code_counts_for_the_digest():
    source = (
        '"""Doc."""\n\nx = 1  # why\n\n\n'
        'def f(a):\n    """Return it.\n\n    Notes\n    """\n    return "# no comment"\n'
    )
    bare = 'x = 1\ndef f(a):\n    return "# no comment"'
    assert results.essence(source) == bare
    assert results.essence(source.replace("x = 1", "x = 2")) != bare


def test_modules_are_those_that_are_spelled_so():
    assert {"sparsecore.datasets", "sparsecore.datasets.dataset"} <= results._modules()
    assert "sparsecore.datasets.Dataset" not in results._modules()  # a class; as a file on macOS


def test_modules_that_are_named_count_though_they_change_no_result():
    named = ("sparsecore.experiment", *results._NO_INFLUENCE)
    assert set(results._NO_INFLUENCE) <= results._closure(named)
    assert "sparsecore.governor" not in results._closure(("sparsecore.experiment",))


def test_the_digest_covers_what_training_imports():
    modules = results._closure(("sparsecore.experiment", "sparsecore.datasets.dataset"))
    needed = {
        "train",
        "mlp",
        "topology",
        "kernels",
        "engine",
        "losses",
        "seeds",
        "augment",
        "datasets.dataset",
    }
    assert {f"sparsecore.{name}" for name in needed} <= modules
    assert not any("paper" in m or "provenance" in m or "registry" in m for m in modules)


def test_where_results_are(tmp_path, monkeypatch):
    monkeypatch.delenv(results.ENVIRONMENT, raising=False)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_toc.yml").touch()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "notebooks").symlink_to("../notebooks")
    for place in (".", "book", "notebooks", "book/notebooks"):
        monkeypatch.chdir(tmp_path / place)
        assert results.root() == tmp_path / "book" / "results"
    outside = tmp_path / "elsewhere" / "deep"
    outside.mkdir(parents=True)
    (tmp_path / "book" / "_toc.yml").unlink()
    monkeypatch.chdir(outside)
    assert results.root() == outside / "results"


def test_a_run_is_stamped_with_the_code_that_began_it(study, monkeypatch):
    now = ["before"]
    monkeypatch.setattr(Condition, "code_sha256", property(lambda self: now[0]))
    train = experiment.run

    def edited_meanwhile(*args, **options):
        now[0] = "edited"
        return train(*args, **options)

    monkeypatch.setattr(experiment, "run", edited_meanwhile)
    condition = Condition("F-test", "quick", "digits", "set-relu", 0)
    assert studies._run(condition, lambda work: None)["code_sha256"] == "before"


@pytest.fixture
def of_older_code(study, monkeypatch):
    """Return the conditions of a study whose results are of other code than today's."""
    longer = replace(study, quick={"digits": {"epochs": 4, "hidden": (20, 20)}})
    monkeypatch.setitem(STUDIES, "F-test", longer)
    with monkeypatch.context() as patch:
        patch.setattr(results, "code_sha256", lambda *modules: "older")
        studies.load("F-test", methods=["set-all-relu"], progress=False)
    found = [c for c in study.conditions("quick") if c.method == "set-all-relu"]
    assert {studies.look(c)[1] for c in found} == {studies.CODE_CHANGED}
    return found


@pytest.mark.parametrize("epochs", [1, 10], ids=["begun", "whole"])
def test_results_that_today_s_code_repeats_count_as_today_s(of_older_code, ran, epochs):
    before = [results.read(c.path) for c in of_older_code]
    ran.clear()
    found = repeat.repeat("F-test", epochs=epochs, progress=False)
    assert found == {c.name: "repeated" for c in of_older_code}
    assert len(ran) == 2
    for condition, old in zip(of_older_code, before, strict=True):
        result, state = studies.look(condition)
        assert state == "present"
        added = {"repeated", "digest"}
        assert {n: v for n, v in result.items() if n not in added} == {
            n: v for n, v in old.items() if n not in added
        }
        assert result["repeated"]["epochs"] == min(epochs, 4)
    assert "later code repeats at least the first" in load().provenance
    assert repeat.repeat("F-test", progress=False) == {}  # nothing is left to do


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda r: r["epochs"][1].update(loss=r["epochs"][1]["loss"] * (1 + 1e-11)),
            "epochs[1].loss",
        ),
        (lambda r: r["epochs"][0]["topology"]["fan_in"][0].append(1), "fan_in[0]"),
        (lambda r: r.update(weights_sha256="other"), "weights_sha256"),
        (lambda r: r["epochs"][2].pop("replaced"), "epochs[2].replaced"),
    ],
)
def test_a_result_that_differs_is_named_and_left_as_it_is(of_older_code, capsys, spoil, reason):
    condition = of_older_code[1]
    result = results.read(condition.path)
    spoil(result)
    results.write(condition.path, result)
    before = condition.path.read_bytes()
    assert __main__.main(["study", "repeat", "F-test", "--methods", "set-all-relu"]) == 1
    said = capsys.readouterr()
    assert f"{of_older_code[0].name}: repeated" in said.out
    assert f"{condition.name}: differs: " in said.out and reason in said.out
    assert f"not the same: {condition.name}" in said.err
    assert condition.path.read_bytes() == before


def test_why_a_result_is_not_repeated(of_older_code, ran, monkeypatch):
    first, second = of_older_code
    whole = results.read(first.path)
    results.write(first.path, {**whole, "diverged": "loss nan"})
    ran.clear()

    @contextmanager
    def lock_after_another(path):
        results.write(first.path, {**whole, "code_sha256": first.code_sha256})
        yield

    assert repeat.repeat("F-test", progress=False) == {
        first.name: "not repeated: it diverged", second.name: "repeated",
    }  # fmt: skip
    assert ran == [("all-relu", 1)]
    results.write(first.path, whole)
    ran.clear()
    with monkeypatch.context() as patch:
        patch.setattr(studies, "data_sha256", lambda name: "another")
        found = repeat.repeat("F-test", progress=False)
    assert found == {first.name: "not repeated: the data have changed"}
    with monkeypatch.context() as patch:
        patch.setattr(
            studies,
            "_data",
            lambda name: raised(DataNotAvailable("digits", [("here", "gone")], "by hand")),
        )
        assert repeat.repeat("F-test", progress=False) == {
            first.name: "not repeated: digits is not available on this machine. Sources tried:"
        }
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "run", lambda *a, **o: raised(FloatingPointError("loss nan")))
        assert repeat.repeat("F-test", progress=False) == {first.name: "differs: loss nan"}
    with monkeypatch.context() as patch:
        patch.setattr(repeat, "lock", lock_after_another)
        found = repeat.repeat("F-test", progress=False)
    assert found == {first.name: "not repeated: another process has just written it"}
    assert ran == []


def raised(error):
    raise error


def test_what_cannot_be_repeated_in_part_is_said(study, monkeypatch, capsys):
    by_cluster = conditions.Method("W", {"activation": "relu"}, conditions.ON_CLUSTER)
    studies.load("F-test", methods=["set-relu"], seeds=[0], progress=False)
    monkeypatch.setitem(METHODS, "set-relu", by_cluster)
    assert repeat.repeat("F-test", progress=False) == {
        "digits-set-relu-seed0": "not repeated: a parallel run cannot be in part"
    }
    for wrong in (["F-test", "--epochs", "0"], ["F-speed"]):
        assert __main__.main(["study", "repeat", *wrong]) == 1
    said = capsys.readouterr().err
    assert "epochs: expected at least 1, got 0" in said and "F-speed is measured" in said


def test_a_repetition_goes_on_until_importance_has_pruned():
    condition = Condition("T-main", "paper", "madelon", "set-all-relu-pruned", 0)
    assert repeat._length(condition, 10) == 202  # the epochs to 201, and one that does not count
    assert repeat._length(replace(condition, method="set-relu"), 10) == 11
    assert repeat._length(replace(condition, profile="quick"), 200) == 60
    # Looked at by `ObservePruning` after the last epoch.
    assert repeat._length(replace(condition, method="set-all-relu"), 10) == 500


def test_command_line(study, ran, capsys):
    assert __main__.main(["study", "list"]) == 0
    assert "F-curves" in capsys.readouterr().out
    assert __main__.main(["study", "status"]) == 0
    assert "digits-set-relu-seed0: missing" in capsys.readouterr().out
    assert __main__.main(["study", "run", "F-test", "--seeds", "1", "--profile", "quick"]) == 0
    assert ran == [("relu", 1), ("all-relu", 1)]
    out = capsys.readouterr().out
    assert "set-all-relu" in out and "test accuracy" in out
    assert __main__.main(["study", "run", "F-none"]) == 1
    assert "F-none" in capsys.readouterr().err


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
    assert __main__.main(["study", "run", "F-speed", "--methods", "dense"]) == 1
    assert "--methods: F-speed is measured whole" in capsys.readouterr().err
    assert ran == [("all-relu", 0), ("all-relu", 1)]
