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
_PLAIN = (str, int, float, bool, tuple, list, type(None))
_KEPT = ("_seed", "_progress", "_multilabel", "_single", "loss_curve_", "n_features_in_")
_MOMENTS = ("mean_", "var_", "scale_", "n_samples_seen_")


def save(estimator: SparseMLPBase, path: str | os.PathLike[str], columns: Any = None) -> None:
    """Write a fitted estimator to one ``.npz`` file, without pickles.

    Parameters
    ----------
    estimator : SparseMLPClassifier or SparseMLPRegressor
    path : path
    columns : sequence of str, optional
        Names of the inputs; those that the estimator was fitted with if left out.
    """
    state = vars(estimator)
    columns = state.get("feature_names_in_") if columns is None else columns
    about: dict[str, Any] = {
        "kind": type(estimator).__name__,
        "params": {k: v for k, v in estimator.get_params().items() if isinstance(v, _PLAIN)},
        "kept": {name: state[name] for name in _KEPT if name in state},
        "columns": None if columns is None else [str(name) for name in columns],
        "scalers": {n: _plain(state[n]) for n in ("scaler_", "target_scaler_") if n in state},
    }
    if (classes := state.get("classes_")) is not None:
        about["classes"] = {"dtype": classes.dtype.str, "values": classes.tolist()}
    checkpoint.save(estimator.model_, path, {"estimator": about})


def load(path: str | os.PathLike[str]) -> tuple[Any, tuple[str, ...] | None]:
    """Read what `save` wrote: the estimator, ready to predict or go on, and its inputs' names.

    Raises
    ------
    CheckpointError
        If the file is no whole saved estimator.
    """
    model, run = checkpoint.load(path)
    if run is None or "estimator" not in run:
        raise CheckpointError(f"{path}: a network, not an estimator; train it with train --data")
    try:
        about = run["estimator"]
        params = {k: tuple(v) if isinstance(v, list) else v for k, v in about["params"].items()}
        estimator = _KINDS[about["kind"]](**params)
        found = {name: about["kept"][name] for name in _KEPT if name in about["kept"]}
        found |= {name: _scaler(values) for name, values in about["scalers"].items()}
        if "classes" in about:
            found["classes_"] = np.array(about["classes"]["values"], about["classes"]["dtype"])
        vars(estimator).update(found, model_=model, best_validation_score_=None)
        vars(estimator).update(validation_scores_=None)
        sizes = (estimator.n_features_in_, estimator._n_outputs())
        if sizes != (model.sizes[0], model.sizes[-1]):
            raise ValueError(f"{sizes} inputs and outputs around a network of {model.sizes}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a whole estimator ({error!r})") from error
    return estimator, None if about["columns"] is None else tuple(about["columns"])


def _plain(scaler: StandardScaler | None) -> dict[str, Any] | None:
    if scaler is None:
        return None
    values = {name: getattr(scaler, name) for name in _MOMENTS}
    plain = {
        k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in values.items()
    }
    return {**plain, "with_mean": scaler.with_mean}


def _scaler(values: dict[str, Any] | None) -> StandardScaler | None:
    if values is None:
        return None
    scaler = StandardScaler(with_mean=values["with_mean"]).set_output(transform="default")
    for name in _MOMENTS:
        value = values[name]
        setattr(scaler, name, None if value is None else np.asarray(value)[()])
    scaler.n_features_in_ = len(scaler.scale_)
    return scaler
