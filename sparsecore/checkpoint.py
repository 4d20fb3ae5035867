"""Models and training checkpoints as files.

A model is one ``.npz`` with a format version and no pickles; a checkpoint also holds the state of
a run.
"""

import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from sparsecore import files
from sparsecore.mlp import SparseMLP
from sparsecore.provenance import differences

FORMAT_VERSION = 1
_NEURONS = 2**25  # a file of any size may announce so many


class CheckpointError(ValueError):
    """A file that is not what it should be: cut short, foreign, or of an unknown version."""


class Damaged(CheckpointError):  # noqa: N818 (named for what happened)
    """A file that is not whole."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over; the message says why."""


def save(model: SparseMLP, path: str | os.PathLike[str], run: dict[str, Any] | None = None) -> None:
    """Write a model to one ``.npz`` file.

    Parameters
    ----------
    model : SparseMLP
    path : path
    run : dict, optional
        JSON-serialisable state of the run that trains the model. Then the velocity is written, too,
        and an existing file is kept as ``path.previous``.

    Raises
    ------
    OSError
        If the file cannot be written: it is no regular file, say, or it or its folder is read-only.
    ValueError
        If a weight, bias or velocity is not finite; an existing file stays.

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
    _check_finite(model, "; a lower learning_rate usually helps")
    net = model.network
    about = model.options | {"run": run}
    arrays = {
        "format_version": np.array(FORMAT_VERSION), "sizes": net.sizes,
        "weight_start": net.weight_start, "indptr": net.indptr, "indices": net.indices,
        "params": model.params, "about": np.array(json.dumps(about)),
    }  # fmt: skip
    if run is not None and model.velocity is not None:
        arrays["velocity"] = model.velocity
    with files.atomic_write(path, keep=run is not None) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load(path: str | os.PathLike[str]) -> tuple[SparseMLP, dict[str, Any] | None]:
    """Read a file that `save` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    model : SparseMLP
    run : dict or None
        The run's state, if there is one.

    Raises
    ------
    CheckpointError
        If the file is cut short, damaged, foreign, or of a newer version.
    OSError
        If it cannot be opened.
    """
    with opened(path, "sparsecore model file") as archive:
        check_version(path, int(array(archive, "format_version")))
        about = json.loads(str(array(archive, "about")))
        if not isinstance(run := about["run"], (dict, type(None))):
            raise ValueError(f"expected a dict as the state of its run, got {run!r:.50}")
        names = ("weight_start", "indptr", "indices", "params")
        options = {name: about[name] for name in ("activation", "alpha", "init")}
        sizes, arrays = array(archive, "sizes").tolist(), [array(archive, name) for name in names]
        # Inputs without connections take no bytes here, but eight in memory.
        if sum(sizes) > max(_NEURONS, sum(values.nbytes for values in arrays)):
            raise ValueError(f"it announces layers of {sizes} neurons")
        moved = array(archive, "velocity") if "velocity.npy" in archive.namelist() else None
        model = SparseMLP.from_flat(sizes, *arrays, velocity=moved, **options)
        _check_finite(model)
        return model, run


def latest(path: Any, read: Callable[[Any], Any] = load) -> Any:
    """Read a checkpoint; if it is damaged, read the one before it, with a warning."""
    try:
        return read(path)
    except Damaged as error:
        before = files.previous(path)
        if not before.exists():
            raise
        found = read(before)
        text = (
            f"{path}: not a whole file ({error.__cause__!r}); the run falls back to {before}, the "
            "checkpoint before it"
        )
        warnings.warn(text, CheckpointWarning, stacklevel=2)
        return found


@contextmanager
def opened(path: Any, what: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive for reading; errors that damaged bytes cause are raised as `Damaged`."""
    with open(path, "rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                size = os.fstat(stream.fileno()).st_size
                for member in archive.infolist():
                    if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                        raise ValueError(f"{member.filename} announces {member.file_size} bytes")
                yield archive
        except (CheckpointError, MemoryError):
            raise
        except Exception as error:
            raise Damaged(
                f"{path}: not a whole {what} ({type(error).__name__}: {error}); restore it from a "
                "copy or train again"
            ) from error


def array_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of a saved array: its shape, in C order, and its type."""
    if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError("an array has a header that sparsecore never writes")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
    if fortran and len(shape) > 1:
        raise ValueError(f"an array of shape {shape} is not in C order")
    return shape, dtype


def array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read an array; it takes no more memory than the file, whatever its header says."""
    content = archive.read(f"{name}.npy")
    member = io.BytesIO(content)
    shape, dtype = array_header(member)
    return np.frombuffer(content, dtype, offset=member.tell()).reshape(shape)


def check_version(path: Any, found: int) -> None:
    """Refuse a file of another format version."""
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {found}, expected {FORMAT_VERSION}; "
            "a newer sparsecore may have written it: update sparsecore"
        )


def to_resume(path: str | os.PathLike[str] | None, resume: bool) -> str | os.PathLike[str] | None:
    """Return the checkpoint to resume from, if there is one; refuse a path that cannot be used."""
    if path is not None:
        files.check_writable(path)
    elif resume:
        raise ValueError("resume: expected checkpoint_path with it, got none")
    return path if resume and path is not None and os.path.exists(path) else None


def check_resumed(
    path: Any, found: dict[str, Any] | None, expected: dict[str, Any]
) -> dict[str, Any]:
    """Return a checkpoint's state if it matches `expected`; otherwise refuse it."""
    if not (isinstance(found, dict) and expected.keys() <= found.keys()):
        raise CheckpointError(
            f"{path}: a model, not the checkpoint of a run; name a file that --checkpoint wrote"
        )
    told = differences({name: found[name] for name in expected}, expected)
    if told:
        raise ValueError(
            f"{path}: belongs to a run with {told}; resume with the same data and options, or name "
            "another checkpoint"
        )
    return found


def _check_finite(model: SparseMLP, advice: str = "") -> None:
    learnt = (model.params, () if model.velocity is None else model.velocity)
    if not all(np.isfinite(values).all() for values in learnt):
        raise ValueError(f"a weight, bias or velocity is not finite{advice}")
