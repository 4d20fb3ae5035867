"""scikit-learn estimators around `SparseMLP` and `Trainer`: a classifier and a regressor."""

from sparsecore.estimator.classifier import SparseMLPClassifier
from sparsecore.estimator.regressor import SparseMLPRegressor

__all__ = ["SparseMLPClassifier", "SparseMLPRegressor"]
