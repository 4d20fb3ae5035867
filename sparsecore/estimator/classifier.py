"""`SparseMLPClassifier`: classes, or several labels at once."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import expit, log_expit, log_softmax
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from sparsecore import functions
from sparsecore.compiled.losses import SIGMOID, SOFTMAX
from sparsecore.estimator import inputs
from sparsecore.estimator.base import SparseMLPBase, complete


@complete
class SparseMLPClassifier(ClassifierMixin, SparseMLPBase):
    """Truly sparse multilayer perceptron classifier, trained with SET.

    Only the weights that exist are stored and used. After every epoch but the last, the weakest
    connections are replaced by random new ones.

    `y` holds labels of any type, at least two different ones. For several labels per sample, it is
    an indicator matrix of shape (n_samples, n_labels); then each label has its own probability.

    {parameters}
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes by label, at least 0; labels left out have weight 1. "balanced":
        inversely proportional to the frequencies of the classes.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
    {attributes}

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sparsecore import SparseMLPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = SparseMLPClassifier(max_iter=20, random_state=0).fit(X[:1500] / 16, y[:1500])
    >>> bool(clf.score(X[1500:] / 16, y[1500:]) > 0.85)
    True
    """

    classes_: np.ndarray
    _multilabel: bool

    def __init__(self, *args, class_weight=None, **parameters):
        """List the parameters that `complete` adds to those of both classes."""

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> "SparseMLPClassifier":
        """Make one pass over a part of a stream.

        An interrupt or an error leaves the estimator as it was before the call.

        Parameters
        ----------
        X, y
            As in `fit`.
        classes : array-like, optional
            All labels that will ever occur; needed in the first call, except for an indicator
            matrix.
        sample_weight : array-like, shape (n_samples,), optional
            Factors of the samples' losses, at least 0. Their size matters here; in `fit` only
            their ratios matter.

        Returns
        -------
        self

        Raises
        ------
        ValueError, FloatingPointError
            As `fit` does.

        Notes
        -----
        Inputs are standardised with the moments of all samples so far. At the start of
        a call the topology changes if the samples since its last change fill 50 batches and are
        at least as many as in this call. O(nnz) per sample.
        """
        return self._partial_fit(X, y, sample_weight, classes)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each row, or an indicator matrix."""
        outputs = self._outputs(X)
        if self._multilabel:
            return (outputs > 0).astype(np.int64)
        return self.classes_[outputs.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities, float32, shape (n_samples, n_classes), columns as `classes_`."""
        outputs = self._outputs(X)
        return expit(outputs) if self._multilabel else functions.probabilities(outputs)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities; small ones are not rounded to 0 first."""
        outputs = self._outputs(X)
        return log_expit(outputs) if self._multilabel else log_softmax(outputs, axis=1)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits, shape (n_samples, n_classes); for two classes, their difference."""
        outputs = self._outputs(X)
        if len(self.classes_) == 2 and not self._multilabel:
            return outputs[:, 1] - outputs[:, 0]
        return outputs

    def _learnable(self, y: Any, weight: Any, classes: Any, first: bool, whole: bool) -> Any:
        several = type_of_target(y, input_name="y") == "multilabel-indicator"
        if not first and several != self._multilabel:
            expected = "an indicator matrix" if self._multilabel else "one label per sample"
            raise ValueError(f"y: expected {expected} as in the first call, got {y.shape}")
        self._multilabel = several
        if several:
            return self._indicators(y, first), weight
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if not first:
            known = self.classes_
        elif whole:
            known = np.unique(y)
            if len(known) < 2:
                raise ValueError(f"y: expected at least two classes, got one class only: {known}")
        elif classes is None:
            raise ValueError("classes: expected all labels in the first call of partial_fit")
        else:
            known = np.unique(classes)
        if classes is not None and not np.array_equal(np.unique(classes), known):
            raise ValueError(f"classes: expected {known} as in the first call, got {classes}")
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            raise ValueError(f"y: expected labels among the classes {known}, got {unknown[:5]}")
        self.classes_ = known
        places = np.searchsorted(known, y)
        if (given := self.class_weight) is not None:
            if isinstance(given, dict):  # scikit-learn would look up the text "1" as the number 1
                labels = known.tolist()
                wrong = given.keys() - {*labels}
                if wrong and not (whole and given.keys() >= {*labels}):
                    raise ValueError(f"class_weight: expected labels among {known}, got {wrong}")
                by_class = np.array([given.get(label, 1) for label in labels], float)[places]
            elif whole:
                by_class = compute_sample_weight(given, y)
            else:
                raise ValueError('class_weight: expected a dict with partial_fit, got "balanced"')
            weight = by_class if weight is None else weight * by_class
            inputs.check_weights("class_weight", weight)
        return places, weight

    def _indicators(self, y: Any, first: bool) -> np.ndarray:
        if self.class_weight is not None:
            raise ValueError("class_weight: expected None for an indicator matrix")
        y = np.ascontiguousarray(y.toarray() if sp.issparse(y) else y, np.float32)
        known = np.arange(y.shape[1]) if first else self.classes_
        if len(known) != y.shape[1]:
            raise ValueError(f"y: expected {len(known)} labels per sample, got {y.shape[1]}")
        if not np.isin(y, (0, 1)).all():
            raise ValueError(f"y: expected 0 and 1 in an indicator matrix, got {np.unique(y)[:5]}")
        self.classes_ = known
        return y

    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _loss(self) -> int:
        return SIGMOID if self._multilabel else SOFTMAX

    def _quality(self, outputs: np.ndarray, y: np.ndarray, weight: Any) -> float:
        found = outputs > 0 if self._multilabel else outputs.argmax(axis=1)
        return float(accuracy_score(y, found, sample_weight=weight))

    def __sklearn_tags__(self) -> Any:
        """Declare support for several labels per sample."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
