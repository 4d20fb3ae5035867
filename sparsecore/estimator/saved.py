"""Fitted estimators as model files: the network, and in the run's state what belongs around it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from sparsecore import checkpoint
from sparsecore.checkpoint import CheckpointError
from sparsecore.estimator.base import SparseMLPBase
from sparsecore.estimator.classifier import SparseMLPClassifier
from sparsecore.estimator.regressor import SparseMLPRegressor

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (SparseMLPClassifier, SparseMLPRegressor)}
_PLAIN = (str, int, float, tuple, list, type(None))
_KEPT = ("_seed", "_progress", "_multilabel", "_single", "loss_curve_", "n_features_in_")
_MOMENTS = ("with_mean", "mean_", "var_", "scale_", "n_samples_seen_")


def save(estimator: SparseMLPBase, path: str | os.PathLike[str], columns: Any = None) -> None:
    """Write a fitted estimator to one ``.npz`` file, without pickles.

    Parameters
    ----------
    estimator : SparseMLPClassifier or SparseMLPRegressor
    path : path-like
    columns : sequence of str, optional
        Names of the inputs; if left out, those that the estimator was fitted with.
    """
    state, params = vars(estimator), estimator.get_params()
    columns = state.get("feature_names_in_") if columns is None else columns
    scalers = {name: state.get(name) for name in ("scaler_", "target_scaler_")}
    about: dict[str, Any] = {
        "kind": type(estimator).__name__,
        "params": {k: v for k, v in params.items() if isinstance(v, _PLAIN)},
        "kept": {name: state[name] for name in _KEPT if name in state},
        "columns": None if columns is None else [str(name) for name in columns],
        "scalers": {
            name: {part: np.asarray(getattr(scaler, part)).tolist() for part in _MOMENTS}
            for name, scaler in scalers.items()
            if scaler is not None
        },
    }
    if (classes := state.get("classes_")) is not None:
        about["classes"] = {"object": classes.tolist(), "dtype": classes.dtype.str}
    checkpoint.save(estimator.model_, path, {"estimator": about})


def load(path: str | os.PathLike[str]) -> tuple[Any, tuple[str, ...] | None]:
    """Read what `save` wrote from `path`: nothing in the file is executed.

    Returns
    -------
    estimator : SparseMLPClassifier or SparseMLPRegressor
        Ready to predict or to go on.
    columns : tuple of str, or None
        Names of the inputs.

    Raises
    ------
    CheckpointError
        If the file holds no whole estimator.
    """
    model, run = checkpoint.load(path)
    if run is None or "estimator" not in run:
        raise CheckpointError(f"{path}: a network, not an estimator; train it with train --data")
    try:
        about = run["estimator"]
        params = {k: tuple(v) if isinstance(v, list) else v for k, v in about["params"].items()}
        estimator = _KINDS[about["kind"]](**params)
        state = {"scaler_": None, "validation_scores_": None, "best_validation_score_": None}
        state |= {name: about["kept"][name] for name in _KEPT if name in about["kept"]}
        for name, parts in about["scalers"].items():
            state[name] = scaler = StandardScaler().set_output(transform="default")
            for part in _MOMENTS:
                setattr(scaler, part, parts[part] and np.asarray(parts[part])[()])
            scaler.n_features_in_ = len(scaler.scale_)
        if "classes" in about:
            state["classes_"] = np.array(**about["classes"])
        vars(estimator).update(state, model_=model)
        sizes = (estimator.n_features_in_, estimator._n_outputs())
        if sizes != (model.sizes[0], model.sizes[-1]):
            raise ValueError(f"{sizes} inputs and outputs around a network of {model.sizes}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a whole estimator ({error!r})") from error
    return estimator, None if about["columns"] is None else tuple(about["columns"])
