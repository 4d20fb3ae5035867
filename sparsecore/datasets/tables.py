"""A user's own table from a file: CSV with a header, NumPy's .npz, or svmlight's text."""

import csv
import math
import re
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsecore.datasets.dataset import number

# Accepts one text for each integer, and only integers that fit into int64.
_INTEGER = re.compile("0|-?[1-9][0-9]{0,17}")


class Contents(NamedTuple):
    """What a file holds."""

    X: Any  #: numbers, dense or CSR
    names: tuple[str, ...] | None  #: of the inputs, if the file has any
    y: Any  #: targets, or None; see `learnable`


def read(
    path: Any, target: str | None = None, names: tuple[str, ...] | None = None,
    n_features: int | None = None,
) -> Contents:  # fmt: skip
    """Read the target, and as inputs the columns in `names`, in that order, or all others."""
    # ``.csv``: a header, then numbers, and any labels in the target's column; ``.npz``: a matrix
    # ``X``, and a vector under the target's name; ``.svmlight``, ``.libsvm``: the target comes
    # first in each line, and features are counted from 0; if a file counts from 1, the first
    # is empty. A file of another form, or without `n_features` inputs, raises a ValueError that
    # names line and column. A CSV file's targets are texts.
    path = Path(path)
    if path.suffix == ".csv":
        table = _csv(path, target, names)
    elif path.suffix in (".svmlight", ".libsvm"):
        table = _svmlight(path, n_features or 0)
    elif path.suffix == ".npz":
        table = _npz(path, target)
    else:
        raise ValueError(f"{path}: expected a .csv, .npz, .svmlight or .libsvm file")
    if n_features not in (None, table.X.shape[1]):
        raise ValueError(f"{path}: expected {n_features} inputs, got {table.X.shape[1]}")
    if 0 in table.X.shape:
        raise ValueError("{}: expected rows of inputs, got {} of {}".format(path, *table.X.shape))
    return table


def learnable(y: np.ndarray, task: str | None, name: Any = "y") -> np.ndarray:
    """Return targets as floats, for the task "numbers", or as another type, for "classes"."""
    # Classes keep their texts, so 01 and 1 are two; but if all are plain integers, such as 1, they
    # become integers. Without a `task`, other texts are numbers if all can be read as numbers and
    # not all are whole. A text that should be a number raises ValueError with its row in `name`.
    kind = y.dtype.kind
    if kind == "U" and task != "numbers" and all(map(_INTEGER.fullmatch, y.flat)):
        return y.astype(np.int64)
    if task == "classes" or (task is None and kind != "U"):
        return y.astype(str) if task and kind == "f" else y
    if kind in "iuf":
        return y.astype(np.float64)
    found = np.array([number(str(value)) for value in y.flat]).reshape(y.shape)
    finite = np.isfinite(found)
    for place in np.argwhere(~finite)[:1] if task else ():
        got = str(y[tuple(place)])
        raise ValueError(f"{name}, row {place[0] + 1}: expected a number to predict, got {got!r}")
    return found if task or (finite.all() and (found != np.rint(found)).any()) else y


def _npz(path: Path, target: str | None) -> Contents:
    with path.open("rb") as stream:
        try:
            zipfile.ZipFile(stream).close()  # NumPy reads other things, too
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                for name in ("X", target or "X"):
                    if name not in file.files:
                        raise ValueError(f"expected an array {name!r}, got {file.files}")
                X = np.asarray(file["X"])
                y = None if target is None else np.asarray(file[target])
        except Exception as error:  # whatever damaged bytes make the readers raise
            advice = "; save texts with .astype(str), numbers with .astype(float)"
            told = (str(error) or type(error).__name__) + advice * ("allow_pickle" in str(error))
            raise ValueError(f"{path}: {told}") from None
    if X.ndim != 2 or X.dtype.kind not in "biuf":
        raise ValueError(f"{path}: X: expected a matrix of numbers, got {X.dtype} of {X.shape}")
    if y is not None and y.dtype.kind not in "biufU":
        raise ValueError(f"{path}: {target}: expected numbers or texts, got {y.dtype}")
    if y is not None and y.shape[:1] != X.shape[:1]:
        raise ValueError(f"{path}: {target}: expected {len(X)} values, one per row, got {y.shape}")
    return Contents(X, None, y)


def _csv(path: Path, target: str | None, names: tuple[str, ...] | None) -> Contents:
    rows = _rows(path)
    top, titles = next(rows)
    header = [name.strip() for name in titles]
    names = tuple(n.strip() for n in names or header if names or n != target)
    counts, places = Counter(header), {name: place for place, name in enumerate(header)}
    for name in (*header, *names, *([] if target is None else [target])):
        if not name:
            got = f"{header!r:.300}; in pandas: to_csv(index=False)"
            raise ValueError(f"{path}, line {top}: expected a name for each column, got {got}")
        if counts[name] != 1:
            got = f"{header!r:.300}" + "; separate the columns by commas" * (len(header) == 1)
            raise ValueError(f"{path}, line {top}: expected one column {name!r}, got {got}")
    chosen = [places[name] for name in names]
    cells, y, n_rows = array("d"), [], 0
    for line, row in rows:
        n_rows += 1
        for place in chosen:
            cells.append(number(row[place]))
            if not math.isfinite(cells[-1]):
                raise ValueError(
                    f"{path}, line {line}, column {header[place]!r}: expected a finite number, got "
                    f"{row[place]!r}; encode categories as numbers (in pandas: get_dummies(table, "
                    "dtype=int)) and fill in what is missing first"
                )
        if target is not None:
            y.append(row[places[target]].strip())
            if not y[-1]:
                at = f"{path}, line {line}, column {target!r}"
                raise ValueError(f"{at}: expected a value, got none")
    X = np.array(cells).reshape(n_rows, len(names))
    return Contents(X, names, None if target is None else np.array(y, str))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of the header, and of each row; all have equally many."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)  # or an open quote swallows the rest of the file
        try:
            header = next(filter(None, lines), [])
            yield max(1, lines.line_num), header
            for row in filter(None, lines):
                if len(row) != len(header):
                    wanted = f"{len(header)} values as in the header, got {len(row)}"
                    raise ValueError(f"{path}, line {lines.line_num}: expected {wanted}")
                yield lines.line_num, row
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {error}; save it as UTF-8") from None
        except csv.Error as error:
            raise ValueError(f"{path}, after line {lines.line_num}: {error}") from None


def _svmlight(path: Path, n_features: int) -> Contents:
    from sklearn.datasets import load_svmlight_file

    try:
        X, y = load_svmlight_file(str(path), zero_based=True)
    except (ValueError, OverflowError) as error:
        _find_fault(path)
        raise ValueError(f"{path}: {error}") from None
    with path.open("rb") as lines:
        if any(b"_" in line for line in lines):  # scikit-learn reads 1_000
            _find_fault(path)
    X.resize(len(y), max(X.shape[1], n_features))  # the last columns may be empty
    whole = (y == np.rint(y)) & (np.abs(y) < 2**53)  # and small enough to be exact
    return Contents(X, None, y.astype(np.int64) if whole.all() else y)


def _find_fault(path: Path) -> None:
    """Raise a ValueError that names the first entry that is not valid svmlight text."""
    with path.open(errors="replace") as lines:
        for line, text in enumerate(lines, 1):
            before = -1
            for column, entry in enumerate(text.partition("#")[0].split(), 1):
                index, _, value = entry.partition(":")
                if column == 1:
                    wanted, fits = "a number", math.isfinite(number(entry))
                elif column == 2 and index == "qid":
                    continue
                else:
                    wanted = "index:number, with an index above the one before and below 2³¹"
                    fits = index.isdecimal() and before < int(index) < 2**31
                    fits = fits and math.isfinite(number(value))
                    before = int(index) if fits else before
                if not fits:
                    at = f"{path}, line {line}, entry {column}"
                    raise ValueError(f"{at}: expected {wanted}, got {entry!r}")
