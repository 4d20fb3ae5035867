"""Fitted estimators as model files: the network, and everything else in the run's state."""

import json
import os
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from sparsecore import checkpoint
from sparsecore.checkpoint import CheckpointError
from sparsecore.estimator.base import SparseMLPBase
from sparsecore.estimator.classifier import SparseMLPClassifier
from sparsecore.estimator.regressor import SparseMLPRegressor

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (SparseMLPClassifier, SparseMLPRegressor)}
_KEPT = ("_seed", "_progress", "_made", "_multilabel", "_single", "loss_curve_", "n_features_in_",
         "feature_names_in_", "validation_scores_", "best_validation_score_")  # fmt: skip
_MOMENTS = ("with_mean", "mean_", "var_", "scale_", "n_samples_seen_")


def save(estimator: SparseMLPBase, path: str | os.PathLike[str], columns: Any = None) -> None:
    """Write a fitted estimator to one ``.npz`` file, without pickles.

    An existing file is kept as ``<path>.previous``.

    Parameters
    ----------
    estimator : SparseMLPClassifier or SparseMLPRegressor
    path : path-like
    columns : sequence of str, optional
        Names of the inputs; if left out, those that the estimator was fitted with.

    Raises
    ------
    TypeError
        If `estimator` is of another class, or a parameter or label is not text, numbers or None.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    """
    if type(estimator) not in _KINDS.values():
        raise TypeError(f"estimator: expected one of {', '.join(_KINDS)}, got {type(estimator)}")
    check_is_fitted(estimator, "model_")
    state, params = vars(estimator), estimator.get_params()
    if isinstance(weights := params.get("class_weight"), dict):
        params["class_weight"] = list(weights.items())  # whose keys need not be text
    columns = state.get("feature_names_in_") if columns is None else columns
    scalers = {name: state[name] for name in ("scaler_", "target_scaler_") if state.get(name)}
    about: dict[str, Any] = {
        "kind": type(estimator).__name__,
        "params": params,
        "kept": {name: state[name] for name in _KEPT if name in state},
        "columns": None if columns is None else [str(name) for name in columns],
        "scalers": {n: {part: getattr(s, part) for part in _MOMENTS} for n, s in scalers.items()},
    }
    if (classes := state.get("classes_")) is not None:
        about["classes"] = {"object": classes, "dtype": classes.dtype.str}
    about = json.loads(json.dumps(about, default=_plain))
    checkpoint.save(estimator.model_, path, {"estimator": about})


def load(path: str | os.PathLike[str]) -> tuple[Any, tuple[str, ...] | None]:
    """Read the estimator that `save` wrote to `path`; nothing in the file is executed.

    Returns
    -------
    estimator : SparseMLPClassifier or SparseMLPRegressor
        Ready to predict or to train on.
    columns : tuple of str, or None
        Names of the inputs.

    Raises
    ------
    CheckpointError
        If the file holds no whole estimator.
    """
    model, run = checkpoint.load(path)
    if run is None or "estimator" not in run:
        raise CheckpointError(f"{path}: a network, not an estimator; make one with train --data")
    try:
        about = run["estimator"]
        params = {k: tuple(v) if isinstance(v, list) else v for k, v in about["params"].items()}
        if isinstance(weights := params.get("class_weight"), tuple):
            params["class_weight"] = dict(weights)
        estimator = _KINDS[about["kind"]](**params)
        none = ("scaler_", "validation_scores_", "best_validation_score_")
        state: dict[str, Any] = dict.fromkeys(none)
        state |= {name: about["kept"][name] for name in _KEPT if name in about["kept"]}
        for name, parts in about["scalers"].items():
            state[name] = scaler = StandardScaler().set_output(transform="default")
            for part in _MOMENTS:
                setattr(scaler, part, parts[part] and np.asarray(parts[part])[()])
            scaler.n_features_in_ = len(scaler.scale_)
        if "feature_names_in_" in state:
            state["feature_names_in_"] = np.array(state["feature_names_in_"], object)
        if "classes" in about:
            labels, kind = about["classes"]["object"], about["classes"]["dtype"]
            state["classes_"] = np.array(labels, kind[: kind.find("U") + 1] or kind)  # own length
        vars(estimator).update(state, model_=model)
        columns = None if about["columns"] is None else tuple(about["columns"])
        sizes = (estimator.n_features_in_, estimator._n_outputs())
        if sizes != (model.sizes[0], model.sizes[-1]):
            raise ValueError(f"{sizes} inputs and outputs around a network of {model.sizes}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: not a whole estimator ({error!r}); fit it again") from error
    return estimator, columns


def _plain(value: Any) -> Any:
    """Return NumPy's values as Python's; refuse values that JSON cannot hold."""
    if not isinstance(value, (np.generic, np.ndarray)):
        expected = "text, numbers and None as parameters (see set_params) and labels"
        raise TypeError(f"expected {expected} to be saved, got {value!r:.99}")
    return value.tolist()
