"""The benchmark of the estimator's defaults, and which inputs matter: from results to tables."""

from functools import partial

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold, cross_val_score
from test_recorded import assert_reads_well

from sparsecore import SparseMLPClassifier, datasets
from sparsecore.paper import estimator, store
from sparsecore.paper.page import Note

ABOUT = {"cpu": "a CPU", "cores": 2, "python": "3"}


def measured(scores):
    methods = {
        method: {"scores": [score] * 5, "seconds": [1.0] * 5, "bytes": [1000] * 5}
        for method, score in zip(estimator.METHODS, scores, strict=True)
    }
    return {"rows": 100, "methods": methods, "provenance": ABOUT, "profile": "paper"}


def test_ranks_and_losses_are_counted_on_the_tables_that_were_not_tuned_on():
    found = {
        "iris": measured([0.5, 0.9, 0.8, 0.7]),  # the defaults were chosen on it
        "wine": measured([0.9, 0.8, 0.8, 0.7]),
        "heart": measured([0.8, 0.9, 0.7, 0.6]),
    }
    found["wine"]["methods"]["sparsecore"]["scores"] = [0.9, 0.92, 0.88, 0.93, 0.87]
    table = estimator.table(found, True)
    assert table.finding.startswith("Of 2 tables without a star, sparsecore is more than a point")
    assert "better than all others on wine, and" in table.finding
    assert "worse than the best on heart; mean ranks: sparsecore 1.50, MLP 1.75, " in table.finding
    assert table.finding.endswith("gradient boosting 2.75, linear 4.00."), "ties share a rank"
    assert list(table.frame["table"]) == ["iris *", "wine", "heart"]
    shown = [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in table.frame["sparsecore"]]
    assert shown == ["50.0 ± 0.0", "**90.0** ± 2.5", "80.0 ± 0.0"]
    assert not [title for title in table.frame if title.endswith(", s")]
    assert list(table.data["sparsecore, s"]) == [1.0] * 3, "the seconds are in the CSV file"
    assert_reads_well(table)
    found["heart"]["provenance"] = {**ABOUT, "commit": "f00d" * 10}
    assert "commit f00df00" in estimator.table(found, True).sources, "all results count"
    only = estimator.table({"iris": found["iris"]}, True)
    assert only.finding == "" and list(only.frame["table"]) == ["iris *"]


@pytest.mark.parametrize("name", ["iris", "diabetes"])
def test_every_method_is_fitted_on_the_same_folds_and_kept(name, monkeypatch, results):
    X = np.random.default_rng(0).standard_normal((40, 5))
    monkeypatch.setattr(
        estimator, "read", lambda _: (X, X[:, 0] if name == "diabetes" else X[:, 0] > 0)
    )
    result = estimator.entry(name, "paper").obtain(lambda: estimator.compare(name))
    assert set(result["methods"]) == set(estimator.METHODS)
    assert all(len(found["scores"]) == 5 for found in result["methods"].values())
    assert estimator.entry(name, "paper").recorded() == result


def test_weight_decays_are_tried_on_the_tables_that_defaults_were_chosen_on(monkeypatch, results):
    X = np.random.default_rng(0).standard_normal((40, 5))
    tried = []
    monkeypatch.setattr(estimator, "read", lambda name: (tried.append(name), (X, X[:, 0] > 0))[1])
    monkeypatch.setattr(estimator, "TABLES", ("iris", "wine", "pima"))
    monkeypatch.setattr(estimator, "_ours", lambda name: partial(SparseMLPClassifier, max_iter=1))
    result = estimator.entry(estimator.DECAY, "paper").obtain(estimator.try_decays)
    assert tried == ["iris", "pima"], "wine confirms the defaults"
    assert estimator.entry(estimator.DECAY, "paper").recorded() == result
    assert [len(scores) for scores in result["scores"].values()] == [len(estimator.DECAYS)] * 2
    X_again, kept = estimator.read("iris")[0], SparseMLPClassifier(max_iter=1)
    kept.set_params(random_state=0, weight_decay=2e-3)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(kept, X_again, X[:, 0] > 0, cv=folds)
    assert result["scores"]["iris"][-1] == pytest.approx(scores.mean())

    result["scores"] = {
        "a": [0.5, 0.7, 0.6, 0.4],
        "b": [0.5, 0.6, 0.6, 0.4],
        "c": [0.5, 0.8, 0.6, 0.4],
    }
    found = {estimator.DECAY: result}
    assert estimator.decay_note(found).text == (
        "Mean gain in accuracy or R² over 3 tables, against the default λ = 0.0002 (95 % "
        "intervals): λ = 2e-05 brings +10.00 points [-14.84, +34.84]. "
    )
    assert estimator.decay_note({}) == Note(store.NOTHING["missing"])


class Fold:
    """An estimator whose score is 1 if it is asked about the 8 of 40 rows that it has not seen."""

    def fit(self, X, y):
        self.fitted = set(X[:, 0])

    def score(self, X, y):
        return float((len(self.fitted), len(X)) == (32, 8) and not self.fitted & set(X[:, 0]))


def test_scores_are_of_rows_that_were_not_fitted(monkeypatch):
    X = np.random.default_rng(0).standard_normal((40, 5))
    monkeypatch.setattr(estimator, "read", lambda _: (X, X[:, 0] > 0))
    made = lambda name, seed: {method: Fold() for method in estimator.METHODS}  # noqa: E731
    monkeypatch.setattr(estimator, "_methods", made)
    found = estimator.compare("iris")["methods"].values()
    assert {tuple(one["scores"]) for one in found} == {(1.0,) * 5}


def test_a_ranking_s_first_features_are_its_strongest(monkeypatch):
    X = datasets.load("madelon-generator").X_train.astype(np.float64)
    matter = np.isin(np.arange(500), estimator.known(X)).astype(float)

    class Forest:
        feature_importances_ = -matter

        def __init__(self, *args, **options):
            pass

        def fit(self, X, y):
            return self

    monkeypatch.setattr(estimator.ensemble, "RandomForestClassifier", Forest)
    monkeypatch.setattr(estimator, "f_classif", lambda X, y: (matter, None))
    monkeypatch.setattr(estimator, "EFFORT", {"quick": (1, (0,))})
    found = estimator.rank_inputs("madelon-generator", "quick")["found"]
    assert (found["F-test"], found["random forest"]) == ([20], [0])


def test_the_features_that_matter_are_known_from_the_data_alone():
    X = datasets.load("madelon-generator").X_train
    found = estimator.known(X)
    others = np.setdiff1d(np.arange(500), found)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    spectrum = np.linalg.svd(Z[:, found], compute_uv=False)
    assert spectrum[5] < 1e-3 * spectrum[0], "20 features of rank 5"
    assert np.linalg.svd(Z[:, others], compute_uv=False)[-1] > 0.1 * spectrum[0]


def test_the_table_of_inputs():
    result = {"epochs": 500, "found": {"sparsecore": [18, 19], "random forest": [9], "F-test": [3]}}
    result |= {"provenance": ABOUT, "profile": "paper", "name": "inputs-madelon"}
    absent = {"missing": "No data."}
    table = estimator.inputs_table({"inputs-madelon": result, "another": absent})
    assert len(table.frame) == 1, "what is missing is left out"
    assert list(table.frame.iloc[0])[-3:] == ["18, 19", "9", "3"]
    assert "has 18.5 among its first 20, an F-test's 3.0, a random forest's 9.0" in table.finding
    assert_reads_well(table)
    here = estimator.inputs_table({"inputs-madelon": {**result, "profile": "quick"}})
    assert here.key == f"{table.key}-here" and here.sources.startswith("This build (profile quick)")
    assert estimator.inputs_table({"inputs-madelon": absent}) == Note("No data.")


def test_where_nothing_is_recorded_the_tables_are_notes(results):
    nothing = Note(store.NOTHING["missing"])
    assert estimator.inputs_table(estimator.recorded()) == nothing
    assert estimator.table(estimator.recorded(), classes=True) == nothing


def test_a_build_measures_its_own_and_one_of_profile_paper_what_is_missing(monkeypatch, results):
    def compute(*asked):
        done.append(asked)
        return {"epochs": 40, "known": [1], "found": {name: [1] for name in estimator.RANKINGS}}

    done = []
    monkeypatch.setattr(estimator, "rank_inputs", compute)
    for _ in range(2):
        assert list(estimator.load("quick")) == list(estimator.INPUTS)
    assert done == [(dataset, "quick") for dataset in estimator.INPUTS.values()]
    assert all(entry.look()[1] == "recorded" for entry in estimator.entries("quick"))
    monkeypatch.setenv(store.PROFILE, "paper")
    monkeypatch.setattr(estimator, "TABLES", ())
    assert list(estimator.recorded()) == [*estimator.INPUTS, estimator.DECAY]
    assert done[2:] == [(dataset, "paper") for dataset in estimator.INPUTS.values()]
