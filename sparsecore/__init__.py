"""Truly sparse multilayer perceptrons: no masks, no dense weight matrix, ever."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["SparseMLP", "SparseMLPClassifier", "SparseMLPRegressor", "__version__"]

if TYPE_CHECKING:
    from sparsecore.estimator import SparseMLPClassifier, SparseMLPRegressor
    from sparsecore.mlp import SparseMLP


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # On first use: the command line's --help and the data commands need neither Numba nor
    # scikit-learn, which take a second to import.
    if name in ("SparseMLPClassifier", "SparseMLPRegressor"):
        from sparsecore import estimator

        return getattr(estimator, name)
    if name == "SparseMLP":
        from sparsecore.mlp import SparseMLP

        return SparseMLP
    raise AttributeError(f"module 'sparsecore' has no attribute {name!r}")
