"""`SparseMLPClassifier`: the scikit-learn contract around `SparseMLP` and `Trainer`."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from sparsecore.compiled.team import cpu_count
from sparsecore.config import HYPERPARAMETERS, TrainConfig
from sparsecore.mlp import as_inputs
from sparsecore.progress import bar
from sparsecore.train import Trainer, new_model

_FOREVER = 2**31  # epochs of a partial_fit: nobody knows which call is the last
# Hyperparameters that scikit-learn gives another name.
_NAMES = {"hidden": "hidden_layer_sizes", "epochs": "max_iter"}


class SparseMLPClassifier(ClassifierMixin, BaseEstimator):
    """Truly sparse multilayer perceptron classifier, trained with SET.

    Only the weights that exist are stored and computed with. After every epoch but the last, the
    weakest connections are replaced by random new ones.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=(256, 256)
        Neurons of each hidden layer.
    epsilon : float, default=20
        Sparsity of the Erdős–Rényi topology: a layer's connection probability is
        min(1, epsilon (n_in + n_out) / (n_in n_out)).
    activation : {"all-relu", "relu", "leaky-relu"}, default="all-relu"
    alpha : float, default=0.6
        Slope of All-ReLU and LeakyReLU (not a penalty, as it is in scikit-learn's MLP).
    init : {"he_uniform", "xavier", "normal"}, default="he_uniform"
        Distribution of initial weights.
    learning_rate, momentum : float, defaults 0.01 and 0.9
    weight_decay : float, default=0.0002
        Decoupled, per step.
    dropout : float, default=0.3
        Share of hidden activations dropped in training.
    zeta : float, default=0.3
        Fraction of connections replaced after an epoch; 0 keeps the topology.
    batch_size, max_iter : int, defaults 32 and 100
        Samples per step; epochs.
    prune_from : int or None, default=None
        First epoch after which neurons of small importance lose their connections; None: never.
    prune_every : int, default=10
        Epochs between prunings.
    prune_percentile : float, default=20
        Percentile of the importances that is pruned, in [0, 100].
    standardize : bool, default=True
        Standardise every feature with the moments of the training data (of the first call's, with
        `partial_fit`). A sparse `X` is only scaled, so that it stays sparse.
    early_stopping : bool, default=False
        Set a part of the training data aside, stop when its accuracy no longer improves, and keep
        the best network. Otherwise the training loss decides, and the last network is kept.
    validation_fraction : float, default=0.1
        Share that early stopping sets aside, in (0, 1).
    n_iter_no_change, tol : int and float, defaults 10 and 1e-4
        Epochs without an improvement by `tol`, of the loss (nats) or of the validation accuracy,
        after which training stops.
    n_jobs : int or None, default=None
        Threads; None is 1, -1 all CPUs. The result does not depend on it.
    random_state : int, RandomState or None, default=None
        Determines topology, weights, data order, dropout and evolution.
    verbose : bool, default=False
        Show a progress bar with loss and validation accuracy.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
    model_ : SparseMLP
        The network itself.
    scaler_ : sklearn.preprocessing.StandardScaler or None
        What stands between `X` and the network.
    coefs_, intercepts_ : lists of scipy.sparse.csc_array, shapes (n_in, n_out), and of ndarray
        Weights, oriented as in scikit-learn's MLP, and biases.
    loss_curve_, loss_ : list of float, and float
        Training loss of each epoch, and of the last one, nats.
    validation_scores_, best_validation_score_ : list of float, and float; or None
        Validation accuracy of each epoch, and the best, with early stopping.
    n_iter_ : int
        Epochs done.
    n_features_in_, feature_names_in_ : int and ndarray of str

    Notes
    -----
    Source: "Truly Sparse Neural Networks at Scale" (All-ReLU, importance pruning) and Mocanu et al.
    2018 (SET). O(nnz) per sample and epoch; 20 bytes per connection.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sparsecore import SparseMLPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = SparseMLPClassifier(max_iter=20, random_state=0).fit(X[:1500] / 16, y[:1500])
    >>> bool(clf.score(X[1500:] / 16, y[1500:]) > 0.85)
    True
    """

    _progress: dict[str, Any] | None
    validation_scores_: list[float] | None
    best_validation_score_: float | None

    def __init__(
        self,
        hidden_layer_sizes=(256, 256),
        *,
        epsilon=20.0,
        activation="all-relu",
        alpha=0.6,
        init="he_uniform",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.0002,
        dropout=0.3,
        zeta=0.3,
        batch_size=32,
        max_iter=100,
        prune_from=None,
        prune_every=10,
        prune_percentile=20.0,
        standardize=True,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        n_jobs=None,
        random_state=None,
        verbose=False,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.epsilon = epsilon
        self.activation = activation
        self.alpha = alpha
        self.init = init
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.zeta = zeta
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.prune_from = prune_from
        self.prune_every = prune_every
        self.prune_percentile = prune_percentile
        self.standardize = standardize
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> SparseMLPClassifier:
        """Train a new network; return this estimator.

        Parameters
        ----------
        X : array-like or scipy.sparse, shape (n_samples, n_features)
            Finite numbers; computed with as float32.
        y : array-like, shape (n_samples,)
            Labels of any type, at least two different ones.

        Raises
        ------
        ValueError
            If a parameter or the data are not as described; the message names the value.
        FloatingPointError
            If the loss diverges.
        """
        config = self._config(self.max_iter)
        X, labels = self._validated(X, y, reset=True)
        classes, labels = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y: expected at least two classes, got one class only: {classes}")
        self.classes_ = classes
        self._start()
        X_valid, valid = None, labels[:0]
        if self.early_stopping:
            X, X_valid, labels, valid = self._split(X, labels)
        self._fit_scaler(X)
        self.model_ = new_model(config, self.n_features_in_, len(self.classes_), self._seed)
        X = self._inputs(X)
        X_valid = None if X_valid is None else self._inputs(X_valid)
        validation_scores: list[float] = []
        self.validation_scores_ = validation_scores if self.early_stopping else None
        best, best_model, stale = -np.inf, None, 0
        with (
            self._trainer(config, len(labels)) as trainer,
            bar(config.epochs, "fit", unit="epoch", hidden=not self.verbose) as shown,
        ):
            while trainer.epoch < config.epochs:
                score = -self._run_epoch(trainer, X, labels)
                if X_valid is not None:
                    score = trainer.evaluate(X_valid, valid)["accuracy"]
                    validation_scores.append(score)
                stale = 0 if score > best + self.tol else stale + 1
                if score > best:
                    best = score
                    if X_valid is not None:
                        best_model = self.model_.copy()
                shown.update()
                shown.set_postfix(
                    loss=self.loss_, **({"validation": score} if self.early_stopping else {})
                )
                if stale >= self.n_iter_no_change:
                    break
                trainer.change_topology()
            self._progress = trainer.progress()
        if best_model is not None:
            self.model_, self.best_validation_score_ = best_model, best
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> SparseMLPClassifier:
        """Take one pass over (X, y), as for `fit`; the topology evolves between calls.

        `classes`, all labels that will ever occur, are needed in the first call only.
        """
        config = self._config(_FOREVER)
        first = not hasattr(self, "model_")
        if first and classes is None:
            raise ValueError(
                "classes: expected all labels in the first call of partial_fit, got None"
            )
        X, labels = self._validated(X, y, reset=first)
        known = np.unique(classes) if first else self.classes_
        if classes is not None and not np.array_equal(np.unique(classes), known):
            raise ValueError(f"classes: expected {known} as in the first call, got {classes}")
        unknown = np.setdiff1d(labels, known)
        if len(unknown):
            raise ValueError(f"y: expected labels among the classes {known}, got {unknown[:5]}")
        if first:
            self.classes_ = known
            self._start()
            self._fit_scaler(X)
            self.model_ = new_model(config, self.n_features_in_, len(known), self._seed)
        with self._trainer(config, len(labels)) as trainer:
            trainer.restore(self._progress)
            if trainer.epoch:
                trainer.change_topology()
            self._run_epoch(trainer, self._inputs(X), np.searchsorted(self.classes_, labels))
            self._progress = trainer.progress()
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each row, shape (n_samples,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities, float32, shape (n_samples, n_classes), columns as `classes_`."""
        check_is_fitted(self, "model_")
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float32, order="C", reset=False)
        return self.model_.predict_proba(self._inputs(X), self._threads())

    @property
    def coefs_(self) -> list[sp.csc_array]:
        """Copies of the weights as sparse arrays of shape (n_in, n_out)."""
        return [layer.T for layer in self.model_.to_scipy()]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """Copies of the biases."""
        return [self.model_[layer].bias.copy() for layer in range(len(self.model_))]

    def __sklearn_tags__(self) -> Any:
        """Say that sparse input is welcome."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _config(self, epochs: int) -> TrainConfig:
        """Check all parameters before any work is done."""
        for name in ("max_iter", "n_iter_no_change"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction: expected a number in (0, 1), "
                f"got {self.validation_fraction!r}"
            )
        self._threads()
        values: dict[str, Any] = {}
        for name, about in HYPERPARAMETERS.items():
            own = _NAMES.get(name, name)
            if hasattr(self, own):
                value = getattr(self, own)
                if name == "hidden" and isinstance(value, (int, np.integer)):
                    value = (value,)
                about.check(value, own)
                values[name] = tuple(value) if name == "hidden" else value
        return TrainConfig(**{**values, "epochs": epochs})

    def _validated(self, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float32, order="C", reset=reset
        )
        check_classification_targets(y)
        return X, y

    def _start(self) -> None:
        """Clear what an earlier fit has left, and draw the seed."""
        self._seed = int(check_random_state(self.random_state).randint(2**31))
        self._progress = None
        self.loss_curve_: list[float] = []
        self.validation_scores_, self.best_validation_score_ = None, None

    def _split(self, X: Any, labels: np.ndarray) -> list[Any]:
        try:
            return train_test_split(
                X,
                labels,
                test_size=self.validation_fraction,
                stratify=labels,
                random_state=self._seed,
            )
        except ValueError as error:
            raise ValueError(
                f"early_stopping: {len(labels)} samples of {len(self.classes_)} classes cannot "
                f"give a validation_fraction of {self.validation_fraction}: {error}"
            ) from error

    def _fit_scaler(self, X: Any) -> None:
        self.scaler_ = None
        if self.standardize:
            self.scaler_ = StandardScaler(with_mean=not sp.issparse(X)).fit(X)

    def _inputs(self, X: Any) -> Any:
        """Return `X` as the network takes it."""
        if self.scaler_ is not None:
            if sp.issparse(X) and self.scaler_.with_mean:  # fitted on dense data
                X = X.toarray()
            X = self.scaler_.transform(X)
        return as_inputs(X, self.model_.sizes[0])

    def _trainer(self, config: TrainConfig, n_samples: int) -> Trainer:
        batch_size = min(config.batch_size, n_samples)
        config = config.with_values(batch_size=batch_size)
        return Trainer(self.model_, config, seed=self._seed, threads=self._threads())

    def _run_epoch(self, trainer: Trainer, X: Any, labels: np.ndarray) -> float:
        self.loss_ = trainer.run_epoch(X, labels)["loss"]
        self.loss_curve_.append(self.loss_)
        self.n_iter_ = trainer.epoch
        return self.loss_

    def _threads(self) -> int:
        if self.n_jobs is None:
            return 1
        threads = self.n_jobs
        if isinstance(threads, (int, np.integer)) and threads < 0:
            threads += cpu_count() + 1
        if not isinstance(threads, (int, np.integer)) or threads < 1:
            raise ValueError(
                f"n_jobs: expected a number of threads, -1 for all CPUs, got {self.n_jobs!r}"
            )
        return int(threads)
