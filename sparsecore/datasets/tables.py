"""A user's own table from a file: CSV with a header, NumPy's .npz, or svmlight's text."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Table(NamedTuple):
    """What a file holds."""

    X: Any  #: float64, dense or CSR
    names: tuple[str, ...] | None  #: of the inputs, if the file has any
    y: Any  #: what is to be predicted, or None


def read(path: Any, target: str | None = None, names: tuple[str, ...] | None = None) -> Table:
    """Read the inputs, all but `target` or those that are named, in that order, and the target.

    ``.csv``: a header, then numbers, and any labels in the target's column; ``.npz``: a matrix
    ``X``, and a vector under the target's name; ``.svmlight``, ``.libsvm``: the target comes first
    in each line. What is not of this form raises ValueError that names line and column.
    """
    path = Path(path)
    if path.suffix == ".csv":
        return _csv(path, target, names)
    if path.suffix in (".svmlight", ".libsvm"):
        return _svmlight(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected a .csv, .npz, .svmlight or .libsvm file")
    with np.load(path, allow_pickle=False) as file:
        for name in ("X", target or "X"):
            if name not in file.files:
                raise ValueError(f"{path}: expected an array {name!r}, got {file.files}")
        return Table(file["X"], None, None if target is None else file[target])


def _csv(path: Path, target: str | None, names: tuple[str, ...] | None) -> Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        rows = [(lines.line_num, row) for row in lines if row]
    names = names or tuple(name for name in header if name != target)
    for name in (*header, *names, *([] if target is None else [target])):
        if header.count(name) != 1:
            raise ValueError(f"{path}, line 1: expected one column {name!r}, got {header}")
    for number, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {number}: expected {len(header)} values as in the header, got "
                f"{len(row)}"
            )
    places = [header.index(name) for name in names]
    cells = [[row[place] for place in places] for _, row in rows]
    try:
        X = np.array(cells, np.float64).reshape(-1, len(names))
    except ValueError:
        X = np.array([[_number(cell) for cell in row] for row in cells])
    for row, column in np.argwhere(~np.isfinite(X))[:1]:
        raise ValueError(
            f"{path}, line {rows[row][0]}, column {names[column]!r}: expected a finite number, got "
            f"{cells[row][column]!r}; encode categories and fill in what is missing first"
        )
    if target is None:
        return Table(X, names, None)
    y = [row[header.index(target)].strip() for _, row in rows]
    if "" in y:
        line = rows[y.index("")][0]
        raise ValueError(f"{path}, line {line}, column {target!r}: expected a value, got none")
    numbers = np.array([_number(value) for value in y])
    if not np.isfinite(numbers).all():
        return Table(X, names, np.array(y))
    return Table(X, names, _whole(numbers))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def _whole(numbers: np.ndarray) -> np.ndarray:
    """Return integers, if all numbers are."""
    return numbers.astype(np.int64) if (numbers == np.rint(numbers)).all() else numbers


def _svmlight(path: Path) -> Table:
    from sklearn.datasets import load_svmlight_file

    try:
        X, y = load_svmlight_file(str(path))
    except ValueError as error:
        for line, text in enumerate(path.read_text(errors="replace").splitlines(), 1):
            for column, entry in enumerate(text.partition("#")[0].split(), 1):
                index, colon, value = entry.partition(":") if column > 1 else ("0", ":", entry)
                if not (colon and index.isdigit() and np.isfinite(_number(value))):
                    place = f"{path}, line {line}, entry {column}"
                    raise ValueError(f"{place}: expected index:number, got {entry!r}") from None
        raise ValueError(f"{path}: {error}") from None
    return Table(X, None, _whole(y))
