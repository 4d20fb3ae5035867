"""A user's own table from a file: CSV with a header, NumPy's .npz, or svmlight's text."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Columns:
    """Inputs (float64, dense or CSR), their names if the file has any, and what is predicted."""

    X: Any
    names: tuple[str, ...] | None
    y: np.ndarray | None


def read(
    path: str | os.PathLike[str], target: str | None = None, names: tuple[str, ...] | None = None
) -> Columns:
    """Read a table.

    Parameters
    ----------
    path : path
        ``.csv``: a header, then numbers, and any labels in the target's column; ``.npz``: a matrix
        ``X`` and, under the target's name, a vector; ``.svmlight``, ``.libsvm``: the target is the
        first number of a line.
    target : str, optional
        Column that is to be predicted.
    names : tuple of str, optional
        Columns to take as inputs, in this order; otherwise all but the target.

    Raises
    ------
    ValueError
        If the file is not of its form; the message names line and column.
    """
    readers = {".csv": _csv, ".npz": _npz, ".svmlight": _svmlight, ".libsvm": _svmlight}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise ValueError(f"{path}: expected a file {', '.join(readers)}, got {suffix or 'none'}")
    return readers[suffix](Path(path), target, names)


def _csv(path: Path, target: str | None, names: tuple[str, ...] | None) -> Columns:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        rows = [(lines.line_num, row) for row in lines if row]
    if len(set(header)) < len(header):
        raise ValueError(f"{path}, line 1: expected column names that differ, got {header}")
    for name in (*(names or ()), *([] if target is None else [target])):
        if name not in header:
            raise ValueError(f"{path}, line 1: expected a column {name!r}, got {header}")
    if not rows:
        raise ValueError(f"{path}: expected at least one row below the header, got none")
    for number, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {number}: expected {len(header)} values as in the header, got "
                f"{len(row)}"
            )
    chosen = names or tuple(name for name in header if name != target)
    places = [header.index(name) for name in chosen]
    cells = [[row[place] for place in places] for _, row in rows]
    try:
        X = np.array(cells, np.float64)
    except ValueError:
        X = np.array([[_number(cell) for cell in row] for row in cells])
    bad = np.argwhere(~np.isfinite(X))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{path}, line {rows[row][0]}, column {chosen[column]!r}: expected a finite number, "
            f"got {cells[row][column]!r}; encode categories and fill in what is missing first"
        )
    if target is None:
        return Columns(X, chosen, None)
    place = header.index(target)
    y = [row[place].strip() for _, row in rows]
    if "" in y:
        raise ValueError(
            f"{path}, line {rows[y.index('')][0]}, column {target!r}: expected a value, got none"
        )
    return Columns(X, chosen, _numbers_if_all(y))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def _numbers_if_all(values: list[str]) -> np.ndarray:
    """Return integers or numbers where all values are such, else texts."""
    for kind in (np.int64, np.float64):
        try:
            return np.array(values).astype(kind)
        except (ValueError, OverflowError):
            continue
    return np.array(values)


def _npz(path: Path, target: str | None, names: tuple[str, ...] | None) -> Columns:
    with np.load(path, allow_pickle=False) as file:
        for name in ("X", *([] if target is None else [target])):
            if name not in file.files:
                raise ValueError(f"{path}: expected an array {name!r}, got {file.files}")
        return Columns(file["X"], None, None if target is None else file[target])


def _svmlight(path: Path, target: str | None, names: tuple[str, ...] | None) -> Columns:
    from sklearn.datasets import load_svmlight_file

    try:
        X, y = load_svmlight_file(str(path))
    except ValueError as error:
        raise ValueError(f"{path}{_where(path)}: {error}") from None
    return Columns(X, None, y.astype(np.int64) if (y == y.astype(np.int64)).all() else y)


def _where(path: Path) -> str:
    """Return the place of the first entry of an svmlight file that is not ``index:number``."""
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        for column, entry in enumerate(line.partition("#")[0].split(), 1):
            index, colon, value = entry.partition(":") if column > 1 else ("0", ":", entry)
            if not (colon and index.isdigit() and np.isfinite(_number(value))):
                return f", line {number}, entry {column}: {entry!r}"
    return ""
