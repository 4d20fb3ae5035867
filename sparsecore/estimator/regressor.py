"""`SparseMLPRegressor`: one or more numbers, learnt with the squared error."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from sparsecore.compiled.losses import SQUARED
from sparsecore.estimator.base import SparseMLPBase, complete
from sparsecore.estimator.inputs import moments, scaled


@complete
class SparseMLPRegressor(RegressorMixin, SparseMLPBase):
    """Truly sparse multilayer perceptron regressor, trained with SET.

    Each target is standardised by its own moments, so the defaults suit any unit. The output layer
    is linear, and the loss is half the squared error of the standardised targets, summed over the
    targets.

    {parameters}

    Attributes
    ----------
    target_scaler_ : sklearn.preprocessing.StandardScaler
        Standardises each target to mean 0 and variance 1.
    {attributes}

    Examples
    --------
    >>> from sklearn.datasets import make_friedman1
    >>> from sparsecore import SparseMLPRegressor
    >>> X, y = make_friedman1(600, random_state=0)
    >>> reg = SparseMLPRegressor(max_iter=60, random_state=0).fit(X[:500], y[:500])
    >>> bool(reg.score(X[500:], y[500:]) > 0.85)
    True
    """

    target_scaler_: Any

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SparseMLPRegressor":
        """Make one pass over a part of a stream.

        Parameters (`sample_weight` included), errors and cost are as in
        `SparseMLPClassifier.partial_fit`, but there are no `classes`. Targets are also
        standardised with the moments of all samples so far.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """Return the predictions, float64, shape (n_samples,) or (n_samples, n_targets)."""
        outputs = self._outputs(X).astype(np.float64)
        found = self.target_scaler_.inverse_transform(outputs)
        return found[:, 0] if self._single else found

    def _learnable(self, y: Any, weight: Any, classes: Any, first: bool, whole: bool) -> Any:
        if sp.issparse(y):
            raise ValueError("y: expected a dense array, got a sparse one; use y.toarray()")
        y = np.asarray(y, np.float64)
        self._single, columns = y.ndim == 1, y.reshape(len(y), -1)
        if not first and columns.shape[1] != self._n_outputs():
            raise ValueError(f"y: expected {self._n_outputs()} targets, got {columns.shape[1]}")
        if first or not whole:
            known = None if first else self.target_scaler_
            self.target_scaler_ = moments(known, columns, weight, "y")
        return scaled(columns, self.target_scaler_, columns.shape[1], "y"), weight

    def _n_outputs(self) -> int:
        return len(self.target_scaler_.scale_)

    def _loss(self) -> int:
        return SQUARED

    def _quality(self, outputs: np.ndarray, y: np.ndarray, weight: Any) -> float:
        return float(r2_score(y, outputs, sample_weight=weight))
