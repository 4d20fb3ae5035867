"""The checkpoint of an extreme run: one file, whole or absent, read without a copy.

It has the ``.npz`` form of `sparsecore.checkpoint`, but goes array by array, straight from and into
the network: there is no memory for a second copy.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sparsecore import files
from sparsecore.checkpoint import (
    FORMAT_VERSION,
    CheckpointError,
    array_header,
    check_version,
    opened,
    undamaged,
)
from sparsecore.extreme.network import TiledMLP

_CHUNK = 2**24
_ABOUT = "about.json"

Progress = Callable[[int], Any]


def save(
    net: TiledMLP, path: str | os.PathLike[str], run: dict[str, Any], progress: Progress
) -> None:
    """Write the network, velocities included, with the JSON-able state of its run.

    The file that was there is kept as `files.previous`, if there is space for three meanwhile.
    """
    about = {"format_version": FORMAT_VERSION, "sizes": list(net.sizes), "run": run}
    with files.atomic_write(path, keep=True) as file, zipfile.ZipFile(file, "w") as archive:
        if shutil.disk_usage(file.fileno()).free < sum(array.nbytes for _, array in net.arrays()):
            files.previous(path).unlink(missing_ok=True)
        archive.writestr(_ABOUT, json.dumps(about))
        for name, array in net.arrays():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
            progress(array.nbytes)


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state of the run that wrote a checkpoint; refuse a damaged or foreign file."""
    return undamaged(path, _read)


def restore(net: TiledMLP, path: str | os.PathLike[str], progress: Progress) -> dict[str, Any]:
    """Fill a network of the same sizes from a checkpoint, and return the state of its run.

    Of a damaged checkpoint the one before it is used, with a warning; a foreign one is refused.
    """
    return undamaged(path, partial(_read, net=net, progress=progress))


def _read(path: Any, net: TiledMLP | None = None, progress: Progress = int) -> dict[str, Any]:
    """Return the state of the run; fill a network, if there is one."""
    with opened(path, "checkpoint of an extreme run") as archive:
        about = json.loads(archive.read(_ABOUT))
        check_version(path, about["format_version"])
        if net is not None:
            if about["sizes"] != list(net.sizes):
                raise CheckpointError(f"{path}: has layers of {about['sizes']}, not {net.sizes}")
            for name, array in net.arrays():
                with archive.open(f"{name}.npy") as member:
                    _fill(array, member)
                progress(array.nbytes)
            net.restored()
        return about["run"]


def _fill(array: np.ndarray, member: Any) -> None:
    """Read a saved array into an existing one."""
    shape, dtype = array_header(member)
    if shape != array.shape or dtype != array.dtype:
        raise ValueError(f"expected {array.dtype} {array.shape}, got {dtype} {shape}")
    left = array.view(np.uint8).data
    while len(left):
        chunk = member.read(min(_CHUNK, len(left)))
        if not chunk:
            raise EOFError("an array is cut short")
        left[: len(chunk)] = chunk
        left = left[len(chunk) :]
    member.read(1)  # reading to the end compares the checksum
