"""Models and training checkpoints as files.

A model is one ``.npz`` with a format version and no pickles; a checkpoint has the state of a run
beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from sparsecore.files import atomic_write
from sparsecore.mlp import SparseMLP

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A file that is not what it should be: cut short, foreign, or of an unknown version."""


def save(model: SparseMLP, path: str | os.PathLike[str], run: dict[str, Any] | None = None) -> None:
    """Write a model to one ``.npz`` file.

    Parameters
    ----------
    model : SparseMLP
    path : path
    run : dict, optional
        JSON-able state of the run that trains it; its velocity is written, too.

    Examples
    --------
    >>> import tempfile
    >>> from sparsecore import SparseMLP, checkpoint
    >>> model = SparseMLP.erdos_renyi((64, 40, 10), random_state=0)
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     checkpoint.save(model, file.name)
    ...     checkpoint.load(file.name)[0].weights_sha256() == model.weights_sha256()
    True
    """
    net = model.network
    about = {name: getattr(model, name) for name in ("activation", "alpha", "init")} | {"run": run}
    arrays = {
        "format_version": np.array(FORMAT_VERSION),
        "sizes": net.sizes,
        "weight_start": net.weight_start,
        "indptr": net.indptr,
        "indices": net.indices,
        "params": model.params,
        "about": np.array(json.dumps(about)),
    }
    if run is not None and model.velocity is not None:
        arrays["velocity"] = model.velocity
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load(path: str | os.PathLike[str]) -> tuple[SparseMLP, dict[str, Any] | None]:
    """Read what `save` wrote to `path`: the model, and the run's state or None.

    Raises
    ------
    CheckpointError
        If the file is cut short, damaged, foreign, or of a newer version.
    OSError
        If it cannot be opened.
    """
    with opened(path, "sparsecore model file") as stream:
        with np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        check_version(path, int(arrays["format_version"]))
        about = json.loads(str(arrays["about"]))
        return _model(arrays, about), about["run"]


@contextmanager
def opened(path: Any, what: str) -> Iterator[IO[bytes]]:
    """Open a file to read; what its damaged bytes make the reader raise is a CheckpointError."""
    with open(path, "rb") as stream:
        try:
            yield stream
        except (CheckpointError, MemoryError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"{path}: not a whole {what} ({type(error).__name__}: {error}); restore it from a "
                "copy or train again"
            ) from error


def check_version(path: Any, found: int) -> None:
    """Refuse a file of another format version."""
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {found}, expected {FORMAT_VERSION}; "
            "a newer sparsecore may have written it"
        )


def check_resumed(
    path: Any, found: dict[str, Any] | None, expected: dict[str, Any]
) -> dict[str, Any]:
    """Return `found`, the state in a checkpoint; refuse it unless it has all that is `expected`."""
    if found is None or not expected.keys() <= found.keys():
        raise CheckpointError(f"{path}: a model, not the checkpoint of a run")
    for name, here in expected.items():
        there = found[name]
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            differ = [k for k in {**there, **here} if there.get(k) != here.get(k)]
            there, here = ({k: v[k] for k in differ if k in v} for v in (there, here))
        raise ValueError(
            f"{path}: belongs to a run with {name} {there!r}, not {here!r}; resume with the same "
            "data and options, or name another checkpoint"
        )
    return found


def _model(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> SparseMLP:
    names = ("weight_start", "indptr", "indices", "params")
    options = {name: about[name] for name in ("activation", "alpha", "init")}
    model = SparseMLP.from_flat(
        arrays["sizes"].tolist(), *(arrays[name] for name in names), **options
    )
    if "velocity" in arrays:
        model.start_momentum()[:] = arrays["velocity"]
    return model
