"""The scikit-learn contract of the estimators, through scikit-learn's own tools."""

import pickle
import re

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import (
    load_digits,
    make_classification,
    make_friedman1,
    make_multilabel_classification,
)
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectFromModel
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sparsecore import SparseMLPClassifier, SparseMLPRegressor, mlp
from sparsecore.config import HYPERPARAMETERS, TrainConfig
from sparsecore.estimator import inputs
from sparsecore.estimator.base import SparseMLPBase
from sparsecore.limits import cpu_count
from sparsecore.settings import DECAYS
from sparsecore.train import Trainer, new_model

# They compare to 1e-7 what is float32 here; `test_a_weight_of_two_is_a_sample_twice` does to 1e-4.
TOO_EXACT = {
    f"check_sample_weight_equivalence_on_{kind}_data": "computes in float32"
    for kind in ("dense", "sparse")
}


# scikit-learn's own suite checks its networks with fewer epochs than by default, too. Of its tiny
# tables, batches of 8 need the kernels of one width.
@parametrize_with_checks(
    [kind(max_iter=20, batch_size=8) for kind in (SparseMLPClassifier, SparseMLPRegressor)],
    expected_failed_checks=lambda _: TOO_EXACT,
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X, y, random_state=0, stratify=y)


def small(**options):
    return SparseMLPClassifier(
        (64, 64), **{"max_iter": 15, "epsilon": 8, "random_state": 0, **options}
    )


def test_learns_digits_far_above_a_linear_guess(digits):
    X_train, X_test, y_train, y_test = digits
    clf = small(max_iter=30).fit(X_train, y_train)
    assert clf.score(X_test, y_test) > 0.93
    assert clf.n_iter_ == len(clf.loss_curve_) == 30
    assert clf.loss_curve_[-1] < clf.loss_curve_[0] / 3
    assert clf.loss_ == clf.loss_curve_[-1]


def test_same_seed_same_network_whatever_the_threads(digits):
    X, _, y, _ = digits
    one = small(max_iter=4).fit(X, y)
    two = small(max_iter=4, n_jobs=2).fit(X, y)
    every = small(max_iter=4, n_jobs=-1).fit(X, y)
    other = small(max_iter=4, random_state=1).fit(X, y)
    assert every._threads() == cpu_count()
    for n_jobs, threads in ((-2 - cpu_count(), 1), (10**6, cpu_count())):
        assert small(n_jobs=n_jobs)._threads() == threads  # trained on a larger machine
    assert one.model_.weights_sha256() == two.model_.weights_sha256()
    assert one.model_.weights_sha256() == every.model_.weights_sha256()
    assert one.model_.weights_sha256() != other.model_.weights_sha256()


@pytest.mark.parametrize(
    "labels",
    [np.array(["no", "yes"]), np.array([-1, 1]), np.array([True, False]), np.array([2.0, 7.0])],
    ids=["text", "signed", "bool", "float"],
)
def test_labels_of_any_type(labels):
    X, y = make_classification(200, 10, class_sep=2, random_state=0)
    clf = small().fit(X, labels[y])
    assert set(clf.predict(X)) <= set(labels)
    assert (clf.predict(X) == labels[y]).mean() > 0.85
    np.testing.assert_array_equal(clf.classes_, np.unique(labels))


def test_columns_of_predict_proba_follow_classes_(digits):
    X_train, X_test, y_train, y_test = digits
    names = np.array(list("jihgfedcba"))
    clf = small().fit(X_train, names[y_train])
    proba = clf.predict_proba(X_test)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(clf.classes_[proba.argmax(axis=1)], clf.predict(X_test))
    assert (clf.predict(X_test) == names[y_test]).mean() > 0.8


def test_sparse_input_gives_the_same_network_as_dense(digits):
    X_train, X_test, y_train, _ = digits
    dense = small(max_iter=3, standardize=False).fit(X_train / 16, y_train)
    sparse = small(max_iter=3, standardize=False).fit(sp.csr_matrix(X_train / 16), y_train)
    assert dense.model_.weights_sha256() == sparse.model_.weights_sha256()
    np.testing.assert_array_equal(
        dense.predict_proba(X_test / 16), sparse.predict_proba(sp.csc_array(X_test / 16))
    )


def test_a_sparse_table_has_one_scale_for_all_features():
    X = sp.random_array((50, 30), density=0.2, format="csr", rng=np.random.default_rng(0))
    clf = SparseMLPClassifier((8,), max_iter=2, random_state=0).fit(1000 * X, np.arange(50) % 2)
    assert len(set(clf.scaler_.scale_)) == 1
    scaled = clf.scaler_.transform(1000 * X)
    assert sp.issparse(scaled) and np.mean(scaled.toarray() ** 2) == pytest.approx(1)


def test_dense_fit_then_sparse_predict(digits):
    X_train, X_test, y_train, _ = digits
    clf = small(max_iter=3).fit(X_train, y_train)
    np.testing.assert_array_equal(clf.predict(X_test), clf.predict(sp.csr_array(X_test)))


def test_in_a_pipeline_a_grid_search_and_cross_validation(digits):
    X, _, y, _ = digits
    X, y = X[:400], y[:400]
    pipe = make_pipeline(MaxAbsScaler(), small(max_iter=15))
    grid = GridSearchCV(pipe, {"sparsemlpclassifier__epsilon": [0.2, 8]}, cv=2).fit(X, y)
    assert grid.best_params_ == {"sparsemlpclassifier__epsilon": 8}
    assert cross_val_score(clone(pipe), X, y, cv=3).min() > 0.6


def test_in_parallel_with_joblib(digits):
    X, _, y, _ = digits
    fits = joblib.Parallel(n_jobs=2)(
        joblib.delayed(small(max_iter=2, random_state=s).fit)(X[:200], y[:200]) for s in (0, 0, 1)
    )
    hashes = [clf.model_.weights_sha256() for clf in fits]
    assert hashes[0] == hashes[1] != hashes[2]


def test_survives_pickling_without_sharing_arrays(digits):
    X, X_test, y, _ = digits
    clf = small(max_iter=2).fit(X, y)
    twin = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(clf.predict_proba(X_test), twin.predict_proba(X_test))
    before = clf.model_.weights_sha256()
    twin.partial_fit(X, y)
    assert clf.model_.weights_sha256() == before != twin.model_.weights_sha256()
    assert np.shares_memory(twin.model_.params, twin.model_[0].data)


def test_partial_fit_learns_from_a_stream(digits):
    X_train, X_test, y_train, y_test = digits
    clf = small()
    for _ in range(15):
        for part in np.array_split(np.arange(len(y_train)), 2):
            clf.partial_fit(X_train[part], y_train[part], classes=np.arange(10))
    assert clf.score(X_test, y_test) > 0.9
    assert clf.n_iter_ == len(clf.loss_curve_) == 30


def test_partial_fit_names_what_it_needs(digits):
    X, _, y, _ = digits
    with pytest.raises(ValueError, match="classes: expected all labels"):
        small().partial_fit(X, y)
    clf = small().partial_fit(X, y, classes=np.arange(10))
    with pytest.raises(ValueError, match=r"got \[99\]"):
        clf.partial_fit(X, np.where(y == 3, 99, y))
    with pytest.raises(ValueError, match="as in the first call"):
        clf.partial_fit(X, y, classes=[1, 2])


def test_early_stopping_keeps_the_best_network(digits):
    X, _, y, _ = digits
    clf = small(max_iter=200, early_stopping=True, n_iter_no_change=4).fit(X, y)
    assert clf.n_iter_ < 200
    assert clf.best_validation_score_ == max(clf.validation_scores_)
    # The set-aside part is drawn again from the seed; the kept network scores the best on it.
    _, X_valid, _, y_valid = train_test_split(
        X, y, test_size=0.1, stratify=y, random_state=clf._seed
    )
    assert clf.score(X_valid, y_valid) == pytest.approx(clf.best_validation_score_)


def test_a_warm_start_with_early_stopping_never_ends_with_a_worse_network(digits):
    X, _, y, _ = digits
    clf = small(max_iter=30, early_stopping=True, warm_start=True, weight_decay=0.0).fit(X, y)
    before, scores = clf.best_validation_score_, clf.validation_scores_
    clf.set_params(max_iter=1, learning_rate=0.3).fit(X, y)
    assert clf.n_iter_ == len(clf.validation_scores_) == len(scores) + 1
    assert clf.validation_scores_[-1] < before == clf.best_validation_score_
    _, X_valid, _, y_valid = train_test_split(
        X, y, test_size=0.1, stratify=y, random_state=clf._seed
    )
    assert clf.score(X_valid, y_valid) == pytest.approx(before)


def test_stops_when_the_loss_no_longer_improves(digits):
    X, _, y, _ = digits
    clf = small(max_iter=100, tol=10.0, n_iter_no_change=3).fit(X, y)
    assert clf.n_iter_ == 4  # the first epoch counts as an improvement on nothing


def test_coefs_are_sparse_and_predict(digits):
    X, _, y, _ = digits
    clf = small(max_iter=2, activation="relu", standardize=False).fit(X / 16, y)
    h = X / 16
    for layer, (W, b) in enumerate(zip(clf.coefs_, clf.intercepts_, strict=True)):
        assert sp.issparse(W)
        h = h @ W + b
        if layer < 2:
            h = np.maximum(h, 0)
    np.testing.assert_array_equal(clf.classes_[h.argmax(axis=1)], clf.predict(X / 16))


def test_standardize_is_the_pipeline_with_a_scaler(digits):
    X, X_test, y, _ = digits
    inside = small(max_iter=2).fit(X, y)
    outside = make_pipeline(StandardScaler(), small(max_iter=2, standardize=False))
    outside.fit(X, y)
    np.testing.assert_array_equal(inside.predict_proba(X_test), outside.predict_proba(X_test))


@pytest.mark.parametrize("scale", [1, 1e-100, 1e100])
def test_inputs_are_standardised_in_their_own_precision(scale):
    t = scale * (1.7e9 + np.random.default_rng(0).integers(0, 60, 600))  # seconds since 1970
    y = (t / scale % 60 < 30).astype(int)
    clf = SparseMLPClassifier((32,), max_iter=15, random_state=0).fit(t[:, None], y)
    assert clf.score(t[:, None], y) > 0.95


@pytest.mark.parametrize("value", [23843212345678901.0, 1.7066592e18, 1.7066592e15, 0.1])
@pytest.mark.parametrize("n", [1_000, 100_000])
def test_a_constant_input_stays_small_however_large_its_value(value, n):
    X = np.full((n, 1), value)
    for weight in (None, np.full(n, 0.01)):
        known = inputs.moments(inputs.moments(None, X, weight), X, weight)
        assert abs(known.transform(X)).max() <= 1
    own = StandardScaler().fit(X + np.arange(n)[:, None] * value)
    np.testing.assert_array_equal(
        inputs.moments(None, X + np.arange(n)[:, None] * value, None).scale_, own.scale_
    )


def test_what_float32_does_not_hold_is_refused():
    X = np.random.default_rng(0).standard_normal((40, 3)) * [1, 1e-100, 0]
    clf = SparseMLPClassifier((8,), max_iter=2, random_state=0)
    with pytest.raises(ValueError, match="as float32: expected finite numbers, got inf at row 2"):
        clf.set_params(standardize=False).fit(
            X + 1e300 * (np.arange(40) == 2)[:, None], X[:, 0] > 0
        )


def test_sparse_input_where_the_configuration_asks_for_frames():
    X = sp.random_array((50, 30), density=0.2, format="csr", rng=np.random.default_rng(0))
    with config_context(transform_output="pandas"):
        clf = SparseMLPClassifier((8,), max_iter=2, random_state=0).fit(X, np.arange(50) % 2)
        assert clf.predict(X).shape == (50,)


def test_verbose_shows_progress(digits, capsys):
    X, _, y, _ = digits
    small(max_iter=2, verbose=True, early_stopping=True).fit(X, y)
    shown = capsys.readouterr().err
    assert "2/2" in shown and "loss=" in shown and "validation=" in shown


BAD = {
    "epsilon": (0, -1.5, True),
    "zeta": (1.0, -0.1),
    "dropout": (1,),
    "momentum": (1.2,),
    "learning_rate": (0,),
    "weight_decay": (-1,),
    "activation": ("tanh",),
    "init": ("zeros",),
    "hidden_layer_sizes": ((10, 0), (2**31,), None, iter([3])),
    "batch_size": (0,),
    "max_iter": (0, True, 2.5, "a"),
    "prune_percentile": (101,),
    "prune_from": (0,),
    "validation_fraction": (1.0, None),
    "n_iter_no_change": (0, None),
    "n_jobs": (0, "x", 1.5),
    "tol": (np.nan, -1, None),
    "standardize": ("false",),
    "early_stopping": (1,),
    "warm_start": (None,),
    "random_state": ("x", -1, 2**32),
    "verbose": ("yes",),
    "class_weight": ("even", {0: -1, 1: 5}, {0: np.nan}),
}


@pytest.mark.parametrize(("option", "value"), [(k, v) for k, values in BAD.items() for v in values])
def test_a_bad_parameter_is_named_before_anything_starts(option, value, monkeypatch):
    monkeypatch.delattr(SparseMLPBase, "_begin")
    with pytest.raises(ValueError) as caught:
        SparseMLPClassifier(**{option: value}).fit(np.eye(4), [0, 1, 0, 1])
    message = str(caught.value)
    assert message.startswith(f"{option}: expected ") and repr(value) in message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad):
    X = np.eye(4)
    X[2, 1] = bad
    with pytest.raises(ValueError, match=r"(?i)nan|infinity"):
        small().fit(X, [0, 1, 0, 1])


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"one class only: \['a'\]"):
        small().fit(np.eye(3), ["a", "a", "a"])


def state(estimator):
    """Return all that is to stay as it was, as something that can be compared."""
    fitted = {k: v for k, v in vars(estimator).items() if k[-1] == "_" or k[0] == "_"}
    return pickle.dumps(fitted)


X40, Y40 = np.random.default_rng(0).standard_normal((40, 5)), np.arange(40) % 3
NOTHING_LOST = {
    "one class": lambda c: c.fit(X40, np.zeros(40)),
    "a class of one sample": lambda c: c.set_params(early_stopping=True).fit(
        X40, np.r_[9, Y40[1:]]
    ),
    "other columns": lambda c: c.fit(X40[:, :2], np.zeros(40)),
    "diverged": lambda c: c.set_params(learning_rate=1e30).fit(X40, Y40),
    "diverged stream": lambda c: c.set_params(learning_rate=1e30).partial_fit(X40, Y40),
    "another shape": lambda c: c.set_params(hidden_layer_sizes=9, warm_start=True).fit(X40, Y40),
    "another class": lambda c: c.partial_fit(X40, Y40 + 1),
    "another density": lambda c: c.set_params(epsilon=1).partial_fit(X40, Y40),
}


@pytest.mark.parametrize("name", NOTHING_LOST)
def test_what_is_refused_or_diverges_leaves_the_state_before(name):
    clf = SparseMLPClassifier((8,), max_iter=3, random_state=0).fit(X40, Y40)
    before, answers = state(clf), clf.predict_proba(X40)
    with pytest.raises((ValueError, FloatingPointError)):
        NOTHING_LOST[name](clf)
    assert state(clf) == before
    np.testing.assert_array_equal(clf.predict_proba(X40), answers)


def made(kind=SparseMLPClassifier, **options):
    return kind(**{"hidden_layer_sizes": (8,), "max_iter": 2, "random_state": 0, **options})


def with_others(**options):
    clf = made(warm_start=True).fit(X40, Y40)
    return clf.set_params(**options).fit(X40, Y40)


R = SparseMLPRegressor
REFUSED = {
    "early_stopping: 40 samples of 2 classes cannot give a validation_fraction of 0.1: no held-out":
        lambda: made(early_stopping=True, class_weight={0: 0.0}).fit(
            X40, np.r_[1, 1, np.zeros(38, int)]
        ),
    "X: its values are too large": lambda: made().fit(X40 * 1e300, Y40),
    "X: its values are too large to": lambda: made().fit(sp.csr_array(X40 * 1e300), Y40),
    "X, as float32: expected finite numbers, got -inf at row 0, feature 1 (1 in all); the value is":
        lambda: made().fit(X40, Y40).predict([[0, -1e300, 0, 0, 0]]),
    "y: its values are too large": lambda: made(R).fit(X40, X40[:, 0] * 1e200),
    "y: expected a dense array": lambda: made(R).fit(X40, sp.csr_array(X40)),
    "early_stopping: 9 samples cannot give a validation_fraction of 0.1: R² needs at least two":
        lambda: made(R, early_stopping=True).fit(X40[:9], X40[:9, 0]),
    "sample_weight: expected a weight above 0 among these rows, and none above 3.4e+38, got 1e+300 "
    "at most": lambda: made(R).fit(X40, X40[:, 0], np.full(40, 1e300)),
    "class_weight: expected a weight above 0 among": lambda:
        made(class_weight={0: 0, 1: 0, 2: 0}).fit(X40, Y40),
    "class_weight: expected a weight above 0 among these rows, and none": lambda:
        made(class_weight={0: 0}).partial_fit(X40, np.zeros(40, int), [0, 1]),
    "SparseMLPClassifier: got an unexpected keyword argument 'foo'": lambda: made(foo=1),
    "SparseMLPRegressor: got an unexpected keyword argument 'foo'": lambda: made(R, foo=1),
    "was made with, got hidden_layer_sizes [9], not [8]; activation 'all-relu', not 'relu'; set":
        lambda: with_others(activation="all-relu", hidden_layer_sizes=9),
    "was made with, got standardize False, not True; set": lambda: with_others(standardize=False),
    "was made with, got alpha 0.3, not 0.25; set": lambda: with_others(alpha=0.3),
    "was made with, got init 'normal', not 'xavier'; set": lambda: with_others(init="normal"),
}  # fmt: skip


@pytest.mark.parametrize("told", REFUSED)
@pytest.mark.filterwarnings("error")
def test_what_is_refused_is_said_before_anything_is_trained(told):
    with pytest.raises((ValueError, TypeError), match=re.escape(told)):
        REFUSED[told]()


@pytest.mark.parametrize("kind", [SparseMLPClassifier, SparseMLPRegressor])
def test_weight_decay_is_said_to_be_the_study_s(kind):
    assert kind().weight_decay == DECAYS[0]
    assert "weight decay is the study's: no other was clearly better there" in kind.__doc__


def test_fit_prunes_and_evolves_as_the_trainer_does(digits):
    X, _, y, _ = digits
    X = StandardScaler().fit_transform(X)
    clf = small(max_iter=4, standardize=False, prune_from=2, prune_every=1).fit(X, y)
    same = {name: value for name, value in clf.get_params().items() if name in HYPERPARAMETERS}
    config = TrainConfig(hidden=clf.hidden_layer_sizes, epochs=4, **same)
    model = new_model(config, 64, 10, clf._seed)
    start = model.nnz
    with Trainer(model, config, seed=clf._seed) as trainer:
        for _ in range(4):
            trainer.run_epoch(X, y)
            trainer.change_topology()
    assert clf.model_.weights_sha256() == model.weights_sha256() and model.nnz < start


def test_early_stopping_scores_by_the_weights(digits):
    X, _, y, _ = digits
    kinds = (
        (small(max_iter=2, early_stopping=True), X, y, y),
        (made(R, early_stopping=True), X40, X40[:, 0], None),
    )
    for estimator, rows, target, classes in kinds:
        weight = np.where(np.arange(len(target)) % 3, 1.0, 20.0)
        estimator.fit(rows, target, weight)
        parts = train_test_split(
            rows, target, weight, test_size=0.1, stratify=classes, random_state=estimator._seed
        )
        best = estimator.best_validation_score_
        assert best == pytest.approx(estimator.score(*parts[1::2]), rel=1e-4)
        assert best != pytest.approx(estimator.score(parts[1], parts[3]), rel=1e-4)


def test_n_jobs_is_the_threads_that_train_and_predict(digits, threads_seen):
    X, _, y, _ = digits
    small(max_iter=1, n_jobs=2).fit(X, y).predict(X)
    assert threads_seen == [2, 2]


def test_targets_of_a_stream_are_scaled_by_all_so_far_and_of_a_warm_start_as_before():
    y = 1000 * X40[:, 0]
    reg = made(R).partial_fit(X40[:1], y[:1]).partial_fit(X40[1:], y[1:])
    np.testing.assert_allclose(reg.target_scaler_.mean_, [y.mean()])
    np.testing.assert_allclose(reg.target_scaler_.scale_, [y.std()])
    warm = made(R, warm_start=True).fit(X40, y)
    before = warm.target_scaler_.mean_.copy()
    np.testing.assert_array_equal(warm.fit(X40, 3 * y + 9).target_scaler_.mean_, before)


def test_the_size_of_a_stream_s_weights_counts():
    one, two = (
        made(learning_rate=rate, standardize=False, weight_decay=0.0).partial_fit(
            X40, Y40, [0, 1, 2], np.full(40, weight)
        )
        for rate, weight in ((0.02, 1.0), (0.01, 2.0))
    )
    np.testing.assert_allclose(two.model_.params, one.model_.params, atol=1e-6)


def test_early_stopping_scores_several_labels_as_score_does():
    y = np.c_[X40[:, 0] > 0, X40[:, 1] > 0].astype(int)
    clf = made(max_iter=5, early_stopping=True, validation_fraction=0.5).fit(X40, y)
    parts = train_test_split(X40, y, test_size=0.5, random_state=clf._seed)
    assert clf.best_validation_score_ == pytest.approx(clf.score(*parts[1::2]))


def test_an_interrupted_fit_does_not_prune_twice(interrupted_in):
    clf = made(max_iter=6, prune_from=3, prune_every=9, zeta=0.0, warm_start=True, batch_size=8)
    whole = clone(clf).fit(X40, Y40)
    with interrupted_in(3), pytest.raises(KeyboardInterrupt):
        clf.fit(X40, Y40)
    assert clf.fit(X40, Y40).model_.nnz == whole.model_.nnz


KINDS = pytest.mark.parametrize("kind", [SparseMLPClassifier, SparseMLPRegressor])


@KINDS
@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_interrupted_fit_keeps_the_epochs_that_are_done(kind, early_stopping, interrupted_in):
    clf = made(kind, max_iter=9, early_stopping=early_stopping, batch_size=8)
    with interrupted_in(4), pytest.raises(KeyboardInterrupt):
        clf.fit(X40, Y40)
    assert clf.n_iter_ == len(clf.loss_curve_) == 4
    assert np.isfinite(clf.predict(X40)).all()
    clf.partial_fit(X40, Y40)
    assert clf.n_iter_ == len(clf.loss_curve_) == 5 and clf._progress["step"] > 4 * 4

    other = clone(clf)
    with interrupted_in(0), pytest.raises(KeyboardInterrupt):
        other.fit(X40, Y40)
    with pytest.raises(NotFittedError):
        other.predict(X40)


@KINDS
def test_an_interrupted_partial_fit_leaves_the_state_before(kind, interrupted_in):
    clf = made(kind, max_iter=9, batch_size=1).fit(X40, Y40)
    clf.partial_fit(X40, Y40)
    before = state(clf)
    with interrupted_in(10), pytest.raises(KeyboardInterrupt):
        clf.partial_fit(X40, Y40)
    assert state(clf) == before


def test_a_refused_first_partial_fit_leaves_nothing_behind():
    X, y = np.random.default_rng(0).standard_normal((20, 5)), np.arange(20) % 2
    clf = SparseMLPClassifier((8,), random_state=0)
    with pytest.raises(ValueError, match="labels among the classes"):
        clf.partial_fit(X, y, classes=[0, 7])
    with pytest.raises(NotFittedError):
        clf.predict(X)
    clf.partial_fit(X, y, classes=[0, 1])
    np.testing.assert_array_equal(clf.classes_, [0, 1])


def test_sparse_rows_are_made_dense_a_few_at_a_time(monkeypatch):
    X = sp.random_array((50, 30), density=0.2, format="csr", rng=np.random.default_rng(0))
    clf = SparseMLPClassifier((8,), max_iter=2, random_state=0).fit(X, np.arange(50) % 2)
    expected = clf.predict_proba(X)
    seen = []
    original = mlp.engine.logits

    def counted(network, inputs, threads):
        seen.append(len(inputs))
        return original(network, inputs, threads)

    monkeypatch.setattr(mlp.engine, "logits", counted)
    monkeypatch.setattr(mlp, "DENSE_VALUES", 30 * 20)
    np.testing.assert_array_equal(clf.predict_proba(X), expected)
    assert seen == [20, 20, 10]


# --- weights, several labels, numbers -------------------------------------------------------------


def weighted(estimator, y, **options):
    """Fit with weights 0, 1 and 2, and on the samples that they stand for."""
    counts = np.arange(40) % 3
    made = {"max_iter": 5, "dropout": 0, "batch_size": 60, "random_state": 0, **options}
    one, other = estimator((8,), **made), estimator((8,), **made)
    return one.fit(X40, y, counts), other.fit(X40.repeat(counts, axis=0), y.repeat(counts, axis=0))


@pytest.mark.parametrize(
    ("estimator", "y"),
    [
        (SparseMLPClassifier, np.arange(40) % 4),
        (SparseMLPClassifier, np.c_[X40[:, 0] > 0, X40[:, 1] > 0].astype(int)),
        (SparseMLPRegressor, X40[:, 0]),
        (SparseMLPRegressor, X40[:, :2]),
    ],
    ids=["classes", "labels", "number", "numbers"],
)
def test_a_weight_of_two_is_a_sample_twice(estimator, y):
    one, other = weighted(estimator, y)
    for name in ("predict", "predict_proba"):
        if hasattr(one, name):
            np.testing.assert_allclose(
                getattr(one, name)(X40), getattr(other, name)(X40), rtol=1e-4, atol=1e-5
            )
    np.testing.assert_allclose(one.loss_curve_, other.loss_curve_, rtol=1e-4)
    with pytest.raises(ValueError, match=r"(?i)weight"):
        one.fit(X40, y, np.zeros(40))


def test_a_stream_remembers_moments_of_fractional_weights():
    clf = made(R).partial_fit(X40 + 9, X40[:, 0], np.full(40, 0.01)).partial_fit(X40, X40[:, 0])
    assert clf.scaler_.n_samples_seen_ == pytest.approx(40.4)
    means = (0.4 * (X40 + 9).mean(axis=0) + 40 * X40.mean(axis=0)) / 40.4
    np.testing.assert_allclose(clf.scaler_.mean_, means)


def test_class_weights_are_sample_weights():
    y = (np.arange(40) % 4 == 0).astype(int)
    common = {"max_iter": 3, "random_state": 0}
    given = SparseMLPClassifier((8,), **common).fit(X40, y, np.where(y, 3.0, 1.0))
    for weights in ("balanced", {0: 1, 1: 3}):
        found = SparseMLPClassifier((8,), class_weight=weights, **common).fit(X40, y)
        np.testing.assert_allclose(found.model_.params, given.model_.params, atol=1e-6)
    part = SparseMLPClassifier((8,), class_weight={1: 3}).partial_fit(
        X40[y == 0], y[y == 0], [0, 1]
    )
    assert part.n_iter_ == 1, "of a stream, which may lack the class that has a weight"
    warm = SparseMLPClassifier((8,), class_weight={1: 3}, warm_start=True, max_iter=1).fit(X40, y)
    assert warm.fit(X40[y == 0], y[y == 0]).n_iter_ == 2, "nor need a warm start have it"
    fold = SparseMLPClassifier((8,), class_weight={0: 1, 1: 3, 2: 5}, max_iter=1).fit(X40, y)
    assert fold.n_iter_ == 1, "nor a fold, if all that it has are named"
    text = SparseMLPClassifier((8,), class_weight={"1": 3}, **common).fit(X40, y.astype(str))
    np.testing.assert_allclose(text.model_.params, given.model_.params, atol=1e-6)
    with pytest.raises(ValueError, match="class_weight: expected labels among"):
        SparseMLPClassifier((8,), class_weight={1: 3}).fit(X40, y.astype(str))
    with pytest.raises(ValueError, match="class_weight: expected labels among"):
        SparseMLPClassifier((8,), class_weight={"up": 3}).partial_fit(X40, y, [0, 1])
    with pytest.raises(ValueError, match="class_weight: expected a dict of weights"):
        SparseMLPClassifier((8,), class_weight=np.ones(2)).fit(X40, y)
    with pytest.raises(ValueError, match="class_weight: expected a dict with partial_fit"):
        SparseMLPClassifier((8,), class_weight="balanced").partial_fit(X40, y, [0, 1])
    with pytest.raises(ValueError, match="class_weight: expected None for an indicator matrix"):
        SparseMLPClassifier((8,), class_weight="balanced").fit(X40, np.c_[y, 1 - y])


def test_logarithms_and_logits_agree_with_the_probabilities():
    several = np.c_[X40[:, 0] > 0, X40[:, 1] > 0].astype(int)
    for y in (Y40, Y40 > 0, several):
        clf = SparseMLPClassifier((8,), max_iter=3, random_state=0).fit(X40, y)
        proba, logits = clf.predict_proba(X40), clf.decision_function(X40)
        np.testing.assert_allclose(np.exp(clf.predict_log_proba(X40)), proba, rtol=1e-5)
        if logits.ndim == 1 or y is several:
            proba = proba if y is several else proba[:, 1]
            np.testing.assert_allclose(1 / (1 + np.exp(-logits)), proba, rtol=1e-5)
        else:
            np.testing.assert_array_equal(logits.argmax(axis=1), proba.argmax(axis=1))


def test_several_labels_are_learnt_each():
    X, y = make_multilabel_classification(400, n_classes=4, random_state=0)
    clf = small(max_iter=50).fit(X[:300], y[:300])
    assert clf.predict(X).shape == y.shape and clf.predict_proba(X).shape == y.shape
    guess = np.maximum(y.mean(axis=0), 1 - y.mean(axis=0)).mean()
    assert (clf.predict(X[300:]) == y[300:]).mean() > guess + 0.1
    stream = clone(clf).partial_fit(X[:1], y[:1])  # no classes to be told
    assert stream.partial_fit(sp.csr_array(X), sp.csr_array(y)).n_iter_ == 2
    with pytest.raises(ValueError, match="y: expected an indicator matrix as in the first call"):
        stream.partial_fit(X, y[:, 0])
    with pytest.raises(ValueError, match="y: expected 4 labels per sample, got 3"):
        stream.partial_fit(X, y[:, :3])
    for other in (2 * y - 1, y + 1, sp.csr_array(2 * y)):
        with pytest.raises(ValueError, match="y: expected 0 and 1 in an indicator matrix, got"):
            small().fit(X, other)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_numbers_of_any_unit_are_learnt(early_stopping):
    X, y = make_friedman1(600, random_state=0)
    both = np.c_[y, 1e9 * X[:, 0] - 1e12]
    reg = SparseMLPRegressor(
        (64, 64), max_iter=60, random_state=0, early_stopping=early_stopping, n_iter_no_change=20
    ).fit(X[:500], both[:500])
    assert min(r2_score(both[500:], reg.predict(X[500:]), multioutput="raw_values")) > 0.8
    alone = clone(reg).fit(X[:500], y[:500])
    assert alone.predict(X).shape == (600,)
    assert alone.score(X[500:], y[500:]) > 0.8
    with pytest.raises(ValueError, match="y: expected 1 targets, got 2"):
        alone.partial_fit(X, both)


def test_a_warm_start_goes_on_as_if_there_had_been_no_stop(digits):
    X, _, y, _ = digits
    once = small(max_iter=6).fit(X, y)
    twice = small(max_iter=3, warm_start=True).fit(X, y).fit(X, y)
    assert twice.loss_curve_ == once.loss_curve_
    assert twice.model_.weights_sha256() == once.model_.weights_sha256()


def test_the_inputs_that_matter_have_the_strongest_connections():
    X, y = make_classification(
        600, 20, n_informative=4, n_redundant=0, shuffle=False, random_state=0
    )
    clf = small(max_iter=60, dropout=0, n_iter_no_change=60).fit(X, y)
    assert clf.feature_importances_.sum() == pytest.approx(1)
    assert clf.feature_importances_[:4].min() > np.median(clf.feature_importances_)
    chosen = SelectFromModel(clf, max_features=4, threshold=-np.inf, prefit=True)
    assert chosen.get_support()[:4].sum() >= 3


def test_a_stream_of_single_samples_is_scaled_and_learnt(digits):
    X, X_test, y, y_test = digits
    scores = []
    for zeta in (0.3, 0):
        clf = small(zeta=zeta).partial_fit(X[:1], y[:1], classes=np.arange(10))
        for first in range(1, 1200, 8):
            clf.partial_fit(X[first : first + 8], y[first : first + 8])
        scores.append(clf.score(X_test, y_test))
    seen = StandardScaler().fit(X[:1201])
    np.testing.assert_allclose(clf.scaler_.mean_, seen.mean_)
    np.testing.assert_allclose(clf.scaler_.scale_, seen.scale_)
    assert min(scores) > 0.7 and scores[0] > scores[1] - 0.05


def test_a_stream_evolves_by_the_amount_of_data(digits, monkeypatch):
    X, _, y, _ = digits
    calls = []
    monkeypatch.setattr(mlp.SparseMLP, "evolve", lambda self, zeta, rng: calls.append(1) or 0)
    clf = small(batch_size=8).partial_fit(X[:100], y[:100], classes=np.arange(10))
    calls.clear()
    for _ in range(8):  # 50 batches of 8
        clf.partial_fit(X[:100], y[:100])
    assert len(calls) == 2 + 8  # an engine is compiled with one more
    clf.partial_fit(X, y).partial_fit(X, y).partial_fit(X, y)
    assert len(calls) == 10 + 2 + 3
