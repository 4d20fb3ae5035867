"""The common part of classifier and regressor: parameters, inputs, fitting, streams.

An error, or an interrupt of `partial_fit`, leaves the estimator as it was: work is done on a draft,
whose state replaces the old one in one step. An interrupt of `fit` after an epoch keeps the draft.
"""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from sparsecore import train
from sparsecore.compiled.losses import SOFTMAX, Aim
from sparsecore.estimator import inputs
from sparsecore.limits import cpu_count
from sparsecore.mlp import SparseMLP
from sparsecore.progress import bar
from sparsecore.provenance import differences

from sparsecore.config import (  # isort: skip
    FLAG, HYPERPARAMETERS, LARGEST, NOT_NEGATIVE, Range, TrainConfig, integers, numbers,
)  # fmt: skip

_FOREVER = 2**31  # epochs of a partial_fit: nobody knows which call is the last
# A stream's topology changes after this many batches, or after a call that has more: sooner, new
# connections would be judged before they have learnt.
_STREAM_BATCHES = 50
#: Hyperparameters that have another name in scikit-learn.
NAMES = {"hidden": "hidden_layer_sizes", "epochs": "max_iter"}
# A network is made with these: it cannot continue with other values.
_MADE = ("hidden", "epsilon", "activation", "alpha", "init", "standardize")
_INT32_MAX = np.iinfo(np.int32).max


def _widths(value: Any) -> tuple[Any, ...]:
    return tuple(value) if np.iterable(value) else (value,)


# The parameters that `TrainConfig` does not check under the same name.
_RANGES: dict[str, Range] = {
    "hidden_layer_sizes": Range(
        tuple, f"integers from 1 to {_INT32_MAX}",
        lambda v: not isinstance(v, Iterator)  # to check one would empty it
        and all(map(integers(1, _INT32_MAX).holds, _widths(v))),
    ),
    "max_iter": integers(1),
    "n_iter_no_change": integers(1),
    "tol": NOT_NEGATIVE,
    "validation_fraction": numbers("a number in (0, 1)", lambda v: 0 < v < 1),
    **dict.fromkeys(("standardize", "early_stopping", "warm_start"), FLAG),
    "verbose": Range(int, "True, False or an integer", lambda v: isinstance(v, (int, np.bool_))),
    "n_jobs": Range(
        int, "a number of threads, -1 for all CPUs",
        lambda v: v is None or (integers(-_INT32_MAX).holds(v) and v != 0),
    ),
    "random_state": Range(
        int, "None, an integer from 0 to 2**32 - 1 or a RandomState",
        lambda v: v is None or isinstance(v, np.random.RandomState)
        or integers(0, 2**32 - 1).holds(v),
    ),
    "class_weight": Range(
        dict, f'a dict of weights from 0 to {LARGEST:.2g}, "balanced" or None',
        lambda v: all(map(NOT_NEGATIVE.holds, v.values())) if isinstance(v, dict)
        else v is None or (isinstance(v, str) and v == "balanced"),
    ),
}  # fmt: skip


class SparseMLPBase(BaseEstimator):
    """What `SparseMLPClassifier` and `SparseMLPRegressor` share.

    The defaults were chosen for tables, by cross-validation within some of the book's tables
    (starred in T-estimator); weight decay is the study's: no other was clearly better there. The
    study's settings are in `settings`. `alpha` is a slope, not a penalty as in scikit-learn's MLP.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default=(256, 256)
        Neurons of each hidden layer.
    max_iter : int, default=150
        Maximum number of epochs; see `n_iter_no_change`.
    {hyperparameters}
    standardize : bool, default=True
        Standardise every feature with the moments of the training data, or of all data that
        `partial_fit` has seen so far. A sparse `X` stays sparse: one factor scales all features
        so that the mean square of the values is 1.
    early_stopping : bool, default=False
        Hold out a part of the training data, stop when the score on it no longer improves, and
        keep the best network. Otherwise the training loss decides, and the last network is kept.
    validation_fraction : float, default=0.1
        Share of the training data that early stopping holds out, in (0, 1).
    n_iter_no_change, tol : int and float, defaults 20 and 1e-4
        Training stops after this many epochs without an improvement by more than `tol` of the
        loss or, with `early_stopping`, of the validation score.
    warm_start : bool, default=False
        `fit` continues with the fitted network, scaler and counters, for `max_iter` more epochs.
        Layers, `epsilon`, `activation`, `alpha`, `init` and `standardize` must be as before.
        With `early_stopping` the fitted network is kept if no new epoch is better on the
        held-out data.
    n_jobs : int or None, default=None
        Number of threads, at most one per CPU; None: 1, -1: all. The result does not depend on it.
    random_state : int, RandomState or None, default=None
        Determines topology, weights, data order, dropout and evolution.
    verbose : bool, default=False
        Show a progress bar with loss and validation score.

    Attributes
    ----------
    model_ : SparseMLP
        The network. It may be replaced by a pruned or compacted one, to predict or to train on.
    scaler_ : sklearn.preprocessing.StandardScaler or None
        Standardises `X`; None with standardize=False.
    coefs_ : list of scipy.sparse.csc_array, shapes (n_in, n_out)
        Weights, oriented as in scikit-learn's MLP.
    intercepts_ : list of ndarray, shapes (n_out,)
        Biases.
    feature_importances_ : ndarray, shape (n_features,)
        Sum of the magnitudes of each input's weights, scaled so that all sum to 1.
    loss_curve_ : list of float
        Training loss of each epoch or call of `partial_fit`: in nats, or half the squared error
        of standardised targets.
    loss_ : float
        The last of `loss_curve_`.
    validation_scores_ : list of float or None
        Score of each epoch on the data that early stopping holds out.
    best_validation_score_ : float or None
        Score of the network that is kept.
    n_iter_ : int
        Number of epochs, or calls of `partial_fit`, done.
    n_features_in_ : int
        Features of `X`.
    feature_names_in_ : ndarray of str
        Names of the features, if `X` has any.

    Notes
    -----
    Source: "Truly Sparse Neural Networks at Scale" (All-ReLU, importance pruning) and Mocanu et al.
    2018 (SET). O(nnz) per sample and epoch; 20 bytes per connection.
    """

    _progress: dict[str, Any]
    loss_curve_: list[float]
    model_: SparseMLP
    scaler_: Any
    validation_scores_: Any

    def __init__(
        self, hidden_layer_sizes=(256, 256), *, epsilon=20.0, activation="relu", alpha=0.25,
        init="xavier", learning_rate=0.01, momentum=0.9, weight_decay=0.0002, dropout=0.0,
        zeta=0.1, batch_size=32, max_iter=150, prune_from=None, prune_every=10,
        prune_percentile=20.0, standardize=True, early_stopping=False, validation_fraction=0.1,
        n_iter_no_change=20, tol=1e-4, warm_start=False, n_jobs=None, random_state=None,
        verbose=False,
    ):  # fmt: skip
        """List the parameters; `complete` makes the method that takes them."""

    if TYPE_CHECKING:  # the parameters, and methods that each class has for itself:
        # _loss() minimised, _n_outputs(), _quality(outputs, y, weight), higher is better, and
        # _learnable(y, weight, classes, first, whole), which returns labels or values and weights;
        # `first`: `y` sets the classes or targets; `whole`: it is not part of a stream

        def __getattr__(self, name: str) -> Any: ...

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train a new network, or with `warm_start` continue with the fitted one.

        After an epoch an interrupt (Ctrl-C) keeps the network as the last step left it, or with
        `early_stopping` the best one; a warm start or `partial_fit` continues from there. Another
        failure leaves the estimator as it was.

        Parameters
        ----------
        X : array-like or scipy.sparse, shape (n_samples, n_features)
            Finite numbers; standardised in their own precision, then converted to float32.
        y : array-like
            Targets, as described for the class.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of at least 0; only their ratios matter. Samples of weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter or the data are invalid; the message names the value.
        FloatingPointError
            If the loss diverges.
        """
        warm = self.warm_start and hasattr(self, "model_")
        draft, before = self._draft(warm), self.n_iter_ if warm else 0
        try:
            draft._fit(X, y, sample_weight, warm)
        except KeyboardInterrupt:
            if getattr(draft, "n_iter_", 0) > before:
                self.__dict__ = vars(draft)
            raise
        self.__dict__ = vars(draft)
        return self

    def _draft(self, fitted: bool) -> Any:
        """Return an estimator with the same parameters and, if wanted, the same fitted state."""
        draft = object.__new__(type(self))
        draft.__dict__.update({k: v for k, v in vars(self).items() if fitted or k[-1] != "_"})
        if "model_" in vars(draft):
            draft.model_ = self.model_.copy()  # it is trained in place
        return draft

    def _fit(self, X: Any, y: Any, weight: Any, warm: bool) -> None:
        config, X, y, weight = self._taken(X, y, weight, None, not warm, True)
        config = config.with_values(epochs=self.n_iter_ + self.max_iter)
        before = (self.validation_scores_ if warm else None) or []
        self.validation_scores_ = [*before] if self.early_stopping else None
        self.best_validation_score_ = None
        aside: Any = None
        if self.early_stopping:
            X, aside, y, y_aside, *weights = self._split(X, y, weight)
            weight, weight_aside = weights or (None, None)
        if not warm:
            self._begin(config, X, weight)
        X, aside = self._inputs(X), None if aside is None else self._inputs(aside)
        targets = self._aim(y, weight, True)

        def quality() -> float:
            outputs = train.outputs(self.model_, aside, config, self._threads())
            return self._quality(outputs, y_aside, weight_aside)

        best, best_model, stale = -np.inf, None, 0
        if warm and aside is not None:  # the fitted network is kept if no new one is better
            best, best_model = quality(), self.model_.copy()
        try:
            with (
                self._trainer(config, len(y)) as trainer,
                bar(self.max_iter, "fit", unit="epoch", hidden=not self.verbose) as shown,
            ):
                while trainer.epoch < config.epochs and stale < self.n_iter_no_change:
                    self._epoch(trainer, X, targets, 1)
                    score, told = -self.loss_, {"loss": self.loss_}
                    if aside is not None:
                        told["validation"] = score = quality()
                        self.validation_scores_.append(score)
                    stale = 0 if score > best + self.tol else stale + 1
                    if score > best:
                        best = score
                        best_model = None if aside is None else self.model_.copy()
                    shown.set_postfix(told, refresh=False)  # else a log would be flooded
                    shown.update()
        finally:
            if best_model is not None:
                self.model_, self.best_validation_score_ = best_model, best

    def _partial_fit(self, X: Any, y: Any, weight: Any, classes: Any = None) -> Any:
        """Do the work of `partial_fit`; an error or interrupt leaves the state before the call."""
        draft, first = self._draft(True), not hasattr(self, "model_")
        config, X, y, weight = draft._taken(X, y, weight, classes, first, False)
        config, n = config.with_values(epochs=_FOREVER), len(y)
        if first:
            draft.validation_scores_ = draft.best_validation_score_ = None
            draft._begin(config, X, weight)
        elif draft.standardize:
            draft.scaler_ = inputs.moments(draft.scaler_, X, weight)
        targets = draft._aim(y, weight, False)
        with draft._trainer(config, n) as trainer:
            change_after = max(n, _STREAM_BATCHES * config.batch_size)
            draft._epoch(trainer, draft._inputs(X), targets, change_after)
        self.__dict__ = vars(draft)
        return self

    def _epoch(self, trainer: train.Trainer, X: Any, targets: Any, change_after: int) -> None:
        """Make one pass; before it, change a topology that has seen `change_after` samples."""
        progress = {**self._progress}
        if progress["pending"] >= change_after:
            progress |= {"pending": 0, "changes": progress["changes"] + 1}
            self._progress = {**progress}  # an interrupted pass does not repeat the change
            train.change_topology(self.model_, trainer.config, self._seed, 0, progress["changes"])
        loss = trainer.run_epoch(X, targets)["loss"]
        progress |= {"pending": progress["pending"] + X.shape[0], "step": trainer.step}
        # Replaced, not changed in place: the old objects belong to the state before.
        self._progress, self.loss_curve_ = progress, [*self.loss_curve_, loss]

    def _taken(
        self, X: Any, y: Any, weight: Any, classes: Any, first: bool, whole: bool
    ) -> tuple[TrainConfig, Any, Any, Any]:
        """Check parameters and data before any work; in the first call, reset the counters."""
        for name, allowed in _RANGES.items():
            allowed.check(name, getattr(self, name, None))
        same = {name: getattr(self, name) for name in HYPERPARAMETERS if name in vars(self)}
        config = TrainConfig(hidden=_widths(self.hidden_layer_sizes), epochs=self.max_iter, **same)
        X, y = validate_data(
            self, X, y, **inputs.accepted(X), multi_output=True,
            y_numeric=isinstance(self, RegressorMixin), reset=first,
        )  # fmt: skip
        if weight is not None:
            weight = _check_sample_weight(weight, X, dtype=np.float64, ensure_non_negative=True)
            inputs.check_weights("sample_weight", weight)
            there = weight > 0
            X, y, weight = (X, y, weight) if there.all() else (X[there], y[there], weight[there])
        y, weight = self._learnable(y, weight, classes, first, whole)
        if first:
            self._seed = int(check_random_state(self.random_state).randint(2**31))
            self._progress = {"step": 0, "changes": 0, "pending": 0}
            self.loss_curve_ = []
        # The layers of the network itself may be smaller, after `compact`.
        values = config.to_dict() | {"standardize": bool(self.standardize)}
        made = {NAMES.get(name, name): values[name] for name in _MADE}
        self._made, before = made, made if first else getattr(self, "_made", made)
        if told := differences(made, before):
            raise ValueError(
                f"expected the parameters that the fitted network was made with, got {told}; set "
                "them to continue, or fit a clone, or fit without warm_start"
            )
        return config, X, y, weight

    def _begin(self, config: TrainConfig, X: Any, weight: Any) -> None:
        """Make scaler and network."""
        self.scaler_ = inputs.moments(None, X, weight) if self.standardize else None
        self.model_ = train.new_model(config, self.n_features_in_, self._n_outputs(), self._seed)

    def _split(self, X: Any, y: Any, weight: Any) -> list[Any]:
        labels = self._loss() == SOFTMAX
        try:
            parts = train_test_split(
                X, y, *([] if weight is None else [weight]), test_size=self.validation_fraction,
                stratify=y if labels else None, random_state=self._seed,
            )  # fmt: skip
            if isinstance(self, RegressorMixin) and len(parts[3]) < 2:
                raise ValueError("R² needs at least two held-out samples, got one")
            if weight is not None and not parts[5].any():
                raise ValueError("no held-out sample has a weight above 0")
            return parts
        except ValueError as error:
            raise ValueError(
                f"early_stopping: {len(y)} samples{f' of {self._n_outputs()} classes' * labels} "
                f"cannot give a validation_fraction of {self.validation_fraction}: {error}"
            ) from error

    def _inputs(self, X: Any) -> Any:
        return inputs.scaled(X, self.scaler_, self.n_features_in_)

    def _aim(self, y: np.ndarray, weight: Any, whole: bool) -> Aim:
        """Return the targets for the kernels; in `whole` data the mean weight is 1."""
        if weight is not None:
            weight = (weight / weight.mean() if whole else weight).astype(np.float32)
        kind = "labels" if self._loss() == SOFTMAX else "values"
        return Aim(self._loss(), weights=weight, **{kind: y})

    def _trainer(self, config: TrainConfig, n_samples: int) -> train.Trainer:
        config = config.with_values(batch_size=min(config.batch_size, n_samples))
        trainer = train.Trainer(self.model_, config, seed=self._seed, threads=self._threads())
        trainer.restore({**trainer.progress(), **self._progress, "epoch": self.n_iter_})
        return trainer

    def _threads(self) -> int:
        _RANGES["n_jobs"].check("n_jobs", self.n_jobs)
        threads, cpus = int(self.n_jobs or 1), cpu_count()  # it may be from a larger machine
        return min(threads, cpus) if threads > 0 else max(1, threads + cpus + 1)  # as in joblib

    def _outputs(self, X: Any) -> np.ndarray:
        """Return the output layer's values, float32, shape (n_samples, n_outputs)."""
        check_is_fitted(self, "model_")
        X = validate_data(self, X, **inputs.accepted(X), reset=False)
        return self.model_.decision_function(self._inputs(X), self._threads())

    @property
    def n_iter_(self) -> int:
        """Number of epochs, or calls of `partial_fit`, done."""
        return len(self.loss_curve_)

    @property
    def loss_(self) -> float:
        """Training loss of the last epoch or call."""
        return self.loss_curve_[-1]

    @property
    def coefs_(self) -> list[sp.csc_array]:
        """Copies of the weights as sparse arrays of shape (n_in, n_out)."""
        return [layer.T for layer in self.model_.to_scipy()]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """Copies of the biases."""
        return [layer.bias.copy() for layer in self.model_]

    @property
    def feature_importances_(self) -> np.ndarray:
        """Sum of the magnitudes of each input's weights, scaled so that all sum to 1."""
        strength = self.model_[0].input_strength()
        return strength / max(strength.sum(), np.finfo(float).tiny)

    def __sklearn_tags__(self) -> Any:
        """Declare support for sparse input and, in the regressor, for several targets."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = isinstance(self, RegressorMixin)
        return tags


def complete(cls: Any) -> Any:
    """Add the parameters of both classes to a class's docstring and signature."""
    known = inspect.signature(SparseMLPBase.__init__).parameters
    named = [about for name, about in HYPERPARAMETERS.items() if name in known]
    listed = "\n".join(about.documented(known[about.name].default) for about in named)
    shared = inspect.cleandoc(SparseMLPBase.__doc__ or "").replace("{hyperparameters}", listed)
    shared = shared.partition("\n\n")[2]
    parameters, _, attributes = shared.partition("\n\nAttributes\n----------\n")
    text = inspect.cleandoc(cls.__doc__ or "").replace("{parameters}", parameters)
    cls.__doc__ = text.replace("{attributes}", attributes)
    own = inspect.signature(cls.__init__).parameters.values()
    more = [p for p in own if p.kind == p.KEYWORD_ONLY and p.name not in known]
    signature = inspect.Signature([*known.values(), *more])

    def init(self: Any, *args: Any, **parameters: Any) -> None:
        try:
            taken = signature.bind(self, *args, **parameters)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}") from None
        taken.apply_defaults()
        vars(self).update(list(taken.arguments.items())[1:])

    init.__signature__ = signature  # type: ignore[attr-defined]
    init.__name__, init.__qualname__ = "__init__", f"{cls.__name__}.__init__"
    cls.__init__ = init
    return cls
